import hashlib
import os
import pickle
import shutil
import tarfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES
from data.modules import NEUTRAL

from vitlab.data import CIFAR10DataModule, CIFAR100DataModule
from vitlab.errors import UserError


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(cifar_archive: Path) -> Iterator[str]:
    """Serves the archive on localhost; gives its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=cifar_archive.parent)) as http:
        every = 0.01  # s, in which it notices its end; 0.5 by default
        threading.Thread(target=http.serve_forever, args=[every], daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/{cifar_archive.name}"
        http.shutdown()


def make(root: Path, url: str, md5: str) -> CIFAR10DataModule:
    return CIFAR10DataModule(root=str(root), url=url, md5=md5, **NEUTRAL)


def md5_of(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


def check(data: CIFAR10DataModule) -> None:
    data.setup()
    assert data.spec.classes == CLASSES
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 75, "val": 25, "test": 20}
    for split in data.splits.values():
        assert split.pick(slice(None)).shape[1:] == (3, 32, 32)
        assert torch.equal(split.pick(slice(None))[:, 0, 0, 0] // 20, split.labels.to(torch.uint8))


def test_the_archive_is_downloaded_once(tmp_path: Path, server: str, cifar_archive: Path) -> None:
    data = make(tmp_path / "data", server, md5_of(cifar_archive))
    data.prepare_data()
    check(data)
    offline = make(tmp_path / "data", "http://127.0.0.1:9/cifar-10-python.tar.gz", md5_of(cifar_archive))
    offline.prepare_data()
    check(offline)


def test_a_damaged_download_is_refused(tmp_path: Path, server: str) -> None:
    with pytest.raises(UserError, match="could not be downloaded from"):
        make(tmp_path / "data", server, "0" * 32).prepare_data()


def test_an_archive_in_the_folder_is_used(tmp_path: Path, cifar_archive: Path) -> None:
    shutil.copy(cifar_archive, tmp_path)
    data = make(tmp_path, f"http://127.0.0.1:9/{cifar_archive.name}", md5_of(cifar_archive))
    data.prepare_data()
    check(data)


def test_a_root_in_the_home_folder_is_found(
    tmp_path: Path, cifar_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    shutil.copy(cifar_archive, tmp_path / "data")
    data = make(Path("~/data"), f"http://127.0.0.1:9/{cifar_archive.name}", md5_of(cifar_archive))
    data.prepare_data()
    check(data)
    assert not Path("~").exists()


def test_offline_it_fails_within_seconds_and_names_the_alternatives(tmp_path: Path) -> None:
    url = "http://cifar.invalid/cifar-10-python.tar.gz"
    start = time.perf_counter()
    with pytest.raises(UserError) as refusal:
        make(tmp_path, url, "c58f30108f718f92721af3b95e74349a").prepare_data()
    assert time.perf_counter() - start < 30
    for part in (url, str(tmp_path), "cifar-10-batches-py", "data=image_folder", "data=synthetic"):
        assert part in str(refusal.value)


def test_official_files_are_checked_against_the_official_checksums(tmp_path: Path, cifar_archive: Path) -> None:
    # The files of another archive must not pass as CIFAR-10.
    shutil.unpack_archive(cifar_archive, tmp_path)
    data = make(tmp_path, "http://127.0.0.1:9/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a")
    with pytest.raises(UserError, match="could not be downloaded"):
        data.prepare_data()


def test_an_archive_can_not_write_outside_its_folder(tmp_path: Path, cifar_archive: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    hostile = data / "cifar-10-python.tar.gz"
    (tmp_path / "note").write_text("x")
    with tarfile.open(hostile, "w:gz") as archive:
        archive.add(tmp_path / "note", "../outside")
        archive.add(cifar_archive, "cifar-10-batches-py/inside")
    with pytest.raises(UserError, match="outside the destination"):
        make(data, f"http://127.0.0.1:9/{hostile.name}", md5_of(hostile)).prepare_data()
    assert not (tmp_path / "outside").exists()


def test_an_archive_that_would_run_code_is_refused(tmp_path: Path, cifar_archive: Path) -> None:
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {canary}",)

    batches = tmp_path / "cifar-10-batches-py"
    with tarfile.open(cifar_archive) as archive:
        archive.extractall(tmp_path, filter="data")
    (batches / "data_batch_1").write_bytes(pickle.dumps({"data": Evil(), "labels": []}))
    data = make(tmp_path, "http://127.0.0.1:9/x", "of its own")
    with pytest.raises(UserError, match="is no data"):
        data.load()
    assert not canary.exists()


def write_cifar100(root: Path) -> list[str]:
    """400 training and 100 test images in the official format; returns the names of the classes."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    names = [f"class {number}" for number in range(100)]
    for split, count in (("train", 400), ("test", 100)):
        fine = [number % 100 for number in range(count)]
        pixels = np.repeat(np.array(fine, dtype=np.uint8)[:, None] * 2, 3072, axis=1)
        content = {"data": pixels, "fine_labels": fine, "coarse_labels": [label // 5 for label in fine]}
        (folder / split).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names, "coarse_label_names": names[:20]}))
    return names


def test_cifar100_is_read_with_its_fine_labels(tmp_path: Path) -> None:
    names = write_cifar100(tmp_path)
    data = CIFAR100DataModule(root=str(tmp_path), url="http://127.0.0.1:9/x.tar.gz", md5="0", **NEUTRAL)
    data.prepare_data()
    data.setup()
    assert data.spec.classes == names
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 300, "val": 100, "test": 100}
    for split in data.splits.values():
        assert torch.equal(split.pick(slice(None))[:, 0, 0, 0].long(), split.labels * 2)
