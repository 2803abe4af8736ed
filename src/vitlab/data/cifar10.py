"""CIFAR-10 (Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images")."""

import pickle
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tarfile import TarError
from types import SimpleNamespace
from typing import Any

import torch
from torchvision import datasets
from torchvision.datasets import cifar

from vitlab.data.arrays import Dataset, ImageArrays
from vitlab.data.datamodule import ImageDataModule
from vitlab.errors import UserError

TIMEOUT_SECONDS = 10.0
# What the official files' arrays are made of.
PLAIN = (
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *(("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")),
)


class CIFAR10DataModule(ImageDataModule):
    """CIFAR-10 from its official archive, downloaded once by torchvision, checksum verified.

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
            with _socket_timeout(TIMEOUT_SECONDS):
                self._open(train=True, download=True)
        except (OSError, RuntimeError, EOFError, TarError) as error:
            raise UserError(
                f"CIFAR-10 is not in {self.root.resolve()} and could not be downloaded from {self.url} ({error}). "
                f"Other ways: put {Path(self.url).name} or its unpacked folder cifar-10-batches-py there yourself "
                "(data.root=... names another folder), use your own image files with data=image_folder data.root=..., "
                "or generated images with data=synthetic"
            ) from error

    def load(self) -> Dataset:
        try:
            train, test = self._open(train=True, download=False), self._open(train=False, download=False)
        except RuntimeError as error:
            raise UserError(f"CIFAR-10 in {self.root.resolve()} is missing or damaged ({error})") from error
        return Dataset(_arrays(train, "train"), _arrays(test, "test"), list(train.classes))

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


def _arrays(data: datasets.CIFAR10, split: str) -> ImageArrays:
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return ImageArrays(images, torch.tensor(data.targets), [f"{split}/{i}" for i in range(len(images))])


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)  # torchvision's download names none: an unreachable host would hang for minutes
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
