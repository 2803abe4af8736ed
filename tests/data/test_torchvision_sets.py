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


def write_mnist(root: Path, name: str, train: str, test: str) -> None:
    """30 training and 10 test images in MNIST's format; QMNIST has eight numbers for each image."""
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for prefix, labels in ((train, [i % 10 for i in range(30)]), (test, list(range(10)))):
        arrays: dict[str, NDArray[Any]] = {f"{prefix}-images-idx3-ubyte": pixels_of(labels, 28, 28)}
        if name == "QMNIST":
            arrays[f"{prefix}-labels-idx2-int"] = np.repeat(np.array(labels, dtype=">i4")[:, None], 8, axis=1)
        else:
            arrays[f"{prefix}-labels-idx1-ubyte"] = np.array(labels, dtype=np.uint8)
        for stem, array in arrays.items():
            kind = 0x800 if array.itemsize == 1 else 0xC00  # bytes, or integers of 32 bits
            head = struct.pack(">I", kind + array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / stem).write_bytes(head + array.tobytes())
            (folder / f"{stem}.gz").write_bytes(gzip.compress(head + array.tobytes()))


def write_fer(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training images with the labels 3 and 5, and test images without labels."""
    (root / "fer2013").mkdir()
    sums = {"fer": ("fer2013.csv", ""), "icml": ("icml_face_data.csv", "")}
    for split, heading, labels in (("train", "emotion,pixels", ["3,", "5,"] * 10), ("test", "pixels", [""] * 4)):
        file = root / "fer2013" / f"{split}.csv"
        file.write_text("\n".join([heading, *(label + " ".join(["20"] * 48 * 48) for label in labels)]) + "\n")
        sums[split] = (file.name, hashlib.md5(file.read_bytes()).hexdigest())
    monkeypatch.setattr(datasets.FER2013, "_RESOURCES", sums)


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
    write_mnist(tmp_path, "FashionMNIST", "train", "t10k")
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


def test_sets_that_hand_on_their_arguments_have_their_own_test_images(tmp_path: Path) -> None:
    write_mnist(tmp_path, "EMNIST", "emnist-digits-train", "emnist-digits-test")
    check(make(tmp_path, "EMNIST", options={"split": "digits"}), 30, 10)
    write_mnist(tmp_path, "QMNIST", "qmnist-train", "qmnist-test")
    check(make(tmp_path, "QMNIST"), 30, 10)
    check(make(tmp_path, "QMNIST", options={"what": "train"}), 27, 3)  # one part: its test images are held out


def test_labels_that_do_not_count_from_0_and_parts_without_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_fer(tmp_path, monkeypatch)
    data = make(tmp_path, "FER2013")
    assert data.spec.classes == ["3", "5"]
    assert {name: split.labels.bincount().tolist() for name, split in data.splits.items()} == {
        **{"train": [9, 9], "val": [], "test": [1, 1]},
    }


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [("EMNIST", {"split": "balanced"}, "no network"), ("FashionMNIST", {"download": False}, "not found")],
)
def test_all_is_downloaded_unless_the_options_say_no(
    name: str, options: dict[str, Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", offline)
    with pytest.raises(UserError, match=reason):
        make(tmp_path, name, options=options)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("SVNH", "SVHN"),
        ("CocoDetection", "CocoDetection"),
        ("STL10", "STL10"),
        ("make_dataset", "no such data set"),
        ("StanfordCars", "cannot be downloaded"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_sentence(
    name: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.stl10.download_and_extract_archive", offline)
    with pytest.raises(UserError, match=named):
        make(tmp_path, name)
