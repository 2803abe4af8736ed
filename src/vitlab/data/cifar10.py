"""CIFAR-10 (Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images")."""

import hashlib
import os
import pickle
import socket
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from tarfile import TarError
from types import SimpleNamespace
from typing import Any

import numpy as np
from filelock import FileLock
from torchvision import datasets
from torchvision.datasets import cifar

from vitlab.data.arrays import Dataset
from vitlab.data.datamodule import ImageDataModule
from vitlab.data.decoded_cache import Decoded, DecodedCache
from vitlab.errors import UserError

TIMEOUT_SECONDS = 10.0
SIDE = 32  # px
# What the official files' arrays are made of.
PLAIN = (
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *(("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")),
)


class CIFAR10DataModule(ImageDataModule):
    """CIFAR-10 from its official archive, downloaded once by torchvision, checksum verified, and kept as one array that
    several processes of a machine share.

    Args:
        root: Folder that holds, or gets, the archive or `cifar-10-batches-py/`.
        url: Where the archive is downloaded from.
        md5: The archive's checksum.
        **shared: See `ImageDataModule`.

    Raises:
        UserError: on `fetch`, where the data is neither there nor to be had.
    """

    def __init__(self, *, root: str, url: str, md5: str, **shared: Any) -> None:
        super().__init__(**shared)
        self.root = Path(root)
        self.url = url
        self.md5 = md5

    def fetch(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            # Of the ranks of a run, and of a sweep's jobs, one downloads and the others wait.
            with FileLock(self.root / ".lock") if os.access(self.root, os.W_OK) else nullcontext():
                self._fetch()
        except (OSError, RuntimeError, EOFError, TarError) as error:
            raise UserError(
                f"CIFAR-10 is not in {self.root.resolve()} and could not be downloaded from {self.url} ({error}). "
                f"Other ways: put {Path(self.url).name} or its unpacked folder cifar-10-batches-py there yourself "
                "(data.root=... names another folder), use your own image files with data=image_folder data.root=..., "
                "or generated images with data=synthetic"
            ) from error

    def _fetch(self) -> None:
        with _socket_timeout(TIMEOUT_SECONDS), _files_stay_in_their_folder():
            train = self._open(train=True, download=True)
        key = self._key()
        with suppress(UserError):  # no folder can be written to: each process decodes for itself
            cache = DecodedCache.choose(None, beside=self.root, key=key)
            if cache.read(key, SIDE) is None:
                with cache.alone():
                    if cache.read(key, SIDE) is None:
                        cache.write(key, SIDE, _decoded(train, self._open(train=False, download=False)))

    def load(self) -> Dataset:
        decoded, key = None, self._key()
        with suppress(UserError):
            decoded = DecodedCache.choose(None, beside=self.root, key=key).read(key, SIDE)
        if decoded is None:
            try:
                decoded = _decoded(*(self._open(train=train, download=False) for train in (True, False)))
            except RuntimeError as error:
                raise UserError(f"CIFAR-10 in {self.root.resolve()} is missing or damaged ({error})") from error
        return Dataset(decoded.split("train"), decoded.split("test"), decoded.classes)

    def _key(self) -> str:
        """Of the decoded images: another archive, or other files, have another."""
        files = sorted((self.root / datasets.CIFAR10.base_folder).glob("*"))
        stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return hashlib.sha256(repr((self.md5, stamps)).encode()).hexdigest()[:24]

    def _open(self, *, train: bool, download: bool) -> datasets.CIFAR10:
        source: Any = type(
            "CIFAR10", (datasets.CIFAR10,), {"url": self.url, "tgz_md5": self.md5, "filename": Path(self.url).name}
        )
        if self.md5 != datasets.CIFAR10.tgz_md5:
            # Another archive in the official format: its own checksum vouches for it, not those of the official parts.
            source.train_list = [[name, None] for name, _ in datasets.CIFAR10.train_list]
            source.test_list = [[name, None] for name, _ in datasets.CIFAR10.test_list]
            source.meta = {**datasets.CIFAR10.meta, "md5": None}
        with _plain_pickles():
            return source(self.root, train=train, download=download)


class _PlainUnpickler(pickle.Unpickler):
    """Reads what the official files hold, arrays and plain data; another archive may hold what runs code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PLAIN:
            raise RuntimeError(f"it holds {module}.{name}, which is no data")
        return super().find_class(module, name)


@contextmanager
def _plain_pickles() -> Iterator[None]:
    real = cifar.pickle
    cifar.pickle = SimpleNamespace(load=lambda file, **options: _PlainUnpickler(file, **options).load())
    try:
        yield
    finally:
        cifar.pickle = real


def _decoded(train: datasets.CIFAR10, test: datasets.CIFAR10) -> Decoded:
    return Decoded(
        images=np.concatenate([train.data, test.data]).transpose(0, 3, 1, 2).copy(),
        labels=[*train.targets, *test.targets],
        names=[f"{name}/{i}" for name, data in (("train", train), ("test", test)) for i in range(len(data))],
        classes=list(train.classes),
        skipped={},
    )


@contextmanager
def _files_stay_in_their_folder() -> Iterator[None]:
    """Until Python 3.14 an archive's files are written wherever it says, and not every torchvision asks for more."""
    before = vars(tarfile.TarFile)["extraction_filter"]
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)  # torchvision's download names none: an unreachable host would hang for minutes
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
