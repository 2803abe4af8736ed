"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009)."""

import os
import pickle
import shutil
import tarfile
from contextlib import nullcontext, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
from filelock import FileLock
from rich.progress import wrap_file
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from vitlab.data.arrays import Dataset
from vitlab.data.datamodule import ImageDataModule
from vitlab.data.decoding import Decoded, DecodedCache, DecodedFile, first_writable, read_any
from vitlab.errors import UserError
from vitlab.files import expand_home, replacing

SIDE = 32  # px
# The official files contain plain data and arrays, which pickle builds from these.
ALLOWED_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    *(("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")),
}


class CIFAR10DataModule(ImageDataModule):
    """CIFAR-10 from its official archive, downloaded once and checked against its MD5 sum.

    The decoded images are kept in one array on disk, which the processes of a machine share. `fetch` raises a UserError
    if the data is missing and cannot be downloaded, or if its files are damaged.

    Args:
        root: Folder with the archive or its unpacked folder, such as `cifar-10-batches-py/`; downloads go here.
        url, md5: Address and MD5 sum of the archive; if it is not the official one, the files inside are not checked.
        **shared: See `ImageDataModule`.
    """

    title = "CIFAR-10"
    official: type[CIFAR10] = CIFAR10  # knows the names and MD5 sums of the files in the archive
    label_key = "labels"

    def __init__(self, *, root: str, url: str, md5: str, **shared: Any) -> None:
        super().__init__(**shared)
        self.root = Path(expand_home(root))
        self.folder = self.root / self.official.base_folder
        self.parts = {"train": self.official.train_list, "test": self.official.test_list}
        self.url = url
        self.md5 = md5
        self._decoded: Decoded | None = None

    def fetch(self) -> None:
        self._decoded = self._read()

    def load(self) -> Dataset:
        decoded = self._decoded or self._read()
        return Dataset(decoded.split("train"), decoded.split("test"), decoded.classes)

    def _read(self) -> Decoded:
        if cached := self._cached():
            return cached
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            # One process downloads and decodes; the run's other ranks and a sweep's other jobs wait.
            with FileLock(self.root / ".lock") if os.access(self.root, os.W_OK) else nullcontext():
                if not self._has_files():
                    self._download()
                return self._cached() or self._decode()
        except UserError:
            raise
        except (OSError, EOFError, ValueError, HTTPException, tarfile.TarError) as error:
            raise UserError(
                f"{self.title} is not in {self.root.resolve()} and could not be downloaded from {self.url} ({error}). "
                f"Put {Path(self.url).name} or its unpacked folder {self.folder.name} there, name another folder "
                "with data.root=..., or use other images: data=image_folder data.root=... for your own, data=synthetic "
                "for generated ones"
            ) from error

    def _caches(self) -> list[DecodedCache]:
        files = sorted(self.folder.glob("*"))
        stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return DecodedCache.candidates(None, beside=self.root, sources=(self.md5, stamps))

    def _cached(self) -> Decoded | None:
        return read_any(self._caches(), SIDE)

    def _has_files(self) -> bool:
        is_official, meta = self.md5 == self.official.tgz_md5, self.official.meta
        files = [*self.parts["train"], *self.parts["test"], (meta["filename"], meta["md5"])]
        return all(check_integrity(self.folder / name, md5 if is_official else None) for name, md5 in files)

    def _download(self) -> None:
        archive = self.root / Path(self.url).name
        if not check_integrity(archive, self.md5):
            with urlopen(self.url, timeout=10) as response, replacing(archive) as part:
                size = int(response.headers.get("Content-Length") or 0)
                with (
                    wrap_file(response, size, description=f"Downloading {self.title}") as source,
                    part.open("wb") as file,
                ):
                    shutil.copyfileobj(source, file)
                if not check_integrity(part, self.md5):
                    raise OSError("the MD5 sum of the downloaded file is wrong")
        with tarfile.open(archive) as tar:
            tar.extractall(self.root, filter="data")  # refuses files outside the folder
        if not self._has_files():
            raise OSError(f"{archive} does not contain all files of {self.title}")

    def _decode(self) -> Decoded:
        try:
            pixels, splits, labels, names = [], [], [], []
            for split, parts in self.parts.items():
                batches = [self._unpickle(name) for name, _ in parts]
                pixels += [batch["data"] for batch in batches]
                found = [label for batch in batches for label in batch[self.label_key]]
                splits += [split] * len(found)
                labels += found
                names += [f"{split}/{number}" for number in range(len(found))]
            classes = self._unpickle(self.official.meta["filename"])[self.official.meta["key"]]
            images = np.concatenate(pixels).reshape(-1, 3, SIDE, SIDE)
        except Exception as error:  # damaged pickles raise anything
            raise UserError(
                f"the {self.title} files in {self.folder.resolve()} are missing or damaged ({error}); delete the "
                "folder to unpack or download them again"
            ) from error
        about: dict[str, Any] = {"splits": splits, "labels": labels, "names": names, "classes": classes}
        with suppress(UserError):  # no folder is writable, or the disk is full: each process decodes for itself
            return first_writable(self._caches()).write(SIDE, about, lambda start: map(DecodedFile, images[start:]))
        return Decoded(images, skipped={}, remarks={}, **about)

    def _unpickle(self, name: str) -> dict[str, Any]:
        with (self.folder / name).open("rb") as file:
            return _PlainUnpickler(file, encoding="latin1").load()


class CIFAR100DataModule(CIFAR10DataModule):
    """CIFAR-100 with its 100 fine labels; see `CIFAR10DataModule`."""

    title = "CIFAR-100"
    official = CIFAR100
    label_key = "fine_labels"


class _PlainUnpickler(pickle.Unpickler):
    """Refuse everything but plain data and arrays: other pickles could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(f"{module}.{name} is no data")
        return super().find_class(module, name)
