"""Test torchvision's data sets on small archives in their official formats."""

import gzip
import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from data.modules import NEUTRAL
from numpy.typing import NDArray
from torchvision import datasets

from vitlab.data import TorchvisionDataModule
from vitlab.errors import UserError

Pixels = NDArray[np.uint8]


def make(root: Path, name: str, **changes: Any) -> TorchvisionDataModule:
    data = TorchvisionDataModule(name=name, root=str(root), **{**NEUTRAL, "options": {}, "val_size": 0, **changes})
    data.prepare_data()
    data.setup()
    return data


def pixels_of(labels: list[int], *shape: int) -> Pixels:
    """Images whose brightness tells their labels."""
    return np.repeat(20 * np.array(labels, dtype=np.uint8), int(np.prod(shape))).reshape(len(labels), *shape)


def write_fashion(root: Path) -> None:
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for prefix, labels in (("train", [i % 10 for i in range(30)]), ("t10k", list(range(10)))):
        images = pixels_of(labels, 28, 28)
        for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", np.uint8(labels))):
            head = struct.pack(">I", 0x800 + array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / name).write_bytes(head + array.tobytes())
            (folder / f"{name}.gz").write_bytes(gzip.compress(head + array.tobytes()))


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sums = {}
    for split, count in (("train", 20), ("test", 10)):
        labels = [i % 10 or 10 for i in range(count)]  # the files call the digit 0 ten
        file = root / f"{split}_32x32.mat"
        content = {"X": pixels_of([n % 10 for n in labels], 32, 32, 3).transpose(1, 2, 3, 0), "y": np.uint8(labels)}
        scipy.io.savemat(file, content)
        sums[split] = ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", sums)


def check(data: TorchvisionDataModule, train: int, test: int) -> None:
    assert {name: len(split) for name, split in data.splits.items()} == {"train": train, "val": 0, "test": test}
    for name in ("train", "test"):
        split = data.splits[name]
        images = split.pick(slice(None))
        assert images.shape[1:] == (3, 32, 32)
        assert (images[:, :, 16, 16] == 20 * split.labels[:, None]).all()


def test_fashion_mnist_in_grey_and_svhn_in_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fashion(tmp_path)
    data = make(tmp_path, "FashionMNIST")
    check(data, 30, 10)
    assert data.spec.classes[9] == "Ankle boot"
    write_svhn(tmp_path, monkeypatch)
    digits = make(tmp_path, "SVHN")
    check(digits, 20, 10)
    assert digits.spec.classes == [str(digit) for digit in range(10)]
    # Decoded once: the files are not needed again.
    (tmp_path / "train_32x32.mat").unlink()
    assert make(tmp_path, "SVHN").fingerprints() == digits.fingerprints()
    two = make(tmp_path, "SVHN", classes=["7", "1"])
    assert two.splits["train"].labels.bincount().tolist() == [2, 2]


@pytest.mark.parametrize(
    ("name", "named"),
    [("SVNH", "SVHN"), ("CocoDetection", "CocoDetection"), ("STL10", "STL10"), ("make_dataset", "no such data set")],
)
def test_what_cannot_be_loaded_is_refused_in_one_sentence(
    name: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.stl10.download_and_extract_archive", offline)
    with pytest.raises(UserError, match=named):
        make(tmp_path, name)
