"""Decode image files to pixels, and cache the decoded images on disk."""

import json
import logging
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from filelock import BaseFileLock, FileLock
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vitlab.data.arrays import ImageArrays
from vitlab.errors import UserError
from vitlab.files import replacing, write_text

log = logging.getLogger(__name__)

STALE_SECONDS = 3600  # age at which a temporary file counts as left behind by a killed process


def read_image(path: Path) -> Image.Image:
    """Read an image file as upright RGB: applies EXIF rotation, puts transparent images on white.

    Raises:
        Exception: of any kind. Besides OSError, Pillow's decoders raise SyntaxError, struct.error, RuntimeError,
            NotImplementedError and others. `describe_failure` words them.
    """
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):
            # Pillow would clip 16-bit grey at 255; these files mean 0 to 65535.
            image = Image.fromarray(np.rint(np.asarray(image, dtype=np.float64) / 257).clip(0, 255).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def image_suffixes() -> set[str]:
    """Lower-case suffixes of the files that Pillow can read: `.jpg`, `.png` ..."""
    readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return readable | {".mpo"}  # Pillow reads it as JPEG and registers it only for writing


def to_square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Resize the shorter side to `size` (bicubic, antialiased) and crop the centre: uint8 `[3, size, size]`."""
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def describe_failure(error: Exception) -> str:
    """The reason why a file could not be read, in a few words."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that Pillow can read"
    return str(error) or type(error).__name__


@dataclass(frozen=True)
class Decoded:
    """The decoded images of all splits.

    Attributes:
        images: uint8 `[N, 3, S, S]`.
        labels: Class indices.
        names: `<split>/...`.
        classes: Names of the classes.
        skipped: Names of the unreadable files, with the reasons.
    """

    images: NDArray[np.uint8]
    labels: list[int]
    names: list[str]
    classes: list[str]
    skipped: dict[str, str]

    def split(self, split: str) -> ImageArrays:
        """The images whose names start with `split/`."""
        rows = [i for i, name in enumerate(self.names) if name.startswith(f"{split}/")]
        return ImageArrays(
            torch.from_numpy(self.images),
            torch.tensor(rows, dtype=torch.int64),
            torch.tensor([self.labels[row] for row in rows], dtype=torch.int64),
            [self.names[row] for row in rows],
        )


@dataclass(frozen=True)
class DecodedCache:
    """Decoded images on disk: `<key>-<side>.npy` holds the pixels, `<key>-<side>.json` the rest and a checksum.

    `<key>-auto<image_size>.txt` holds the side that was chosen for a model with this input size.

    Attributes:
        folder: Holds the files.
        key: Identifies the source files; a changed file changes it.
    """

    folder: Path
    key: str

    @classmethod
    def choose(cls, folder: Path | None, *, beside: Path, key: str) -> "DecodedCache":
        """Use `folder` if given, else a folder next to the data, else one in the home directory.

        The first folder that already holds `key` is used, otherwise the first that is writable.

        Raises:
            UserError: none is.
        """
        candidates = [folder] if folder else [beside / ".vitlab_cache", Path.home() / ".cache" / "vitlab"]
        for candidate in candidates:
            if candidate.is_dir() and any(candidate.glob(f"{key}-*.npy")):
                return cls(candidate, key)
        for candidate in candidates:
            with suppress(OSError):
                candidate.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=candidate).close()
                return cls(candidate, key)
        tried = " or ".join(map(str, candidates))
        raise UserError(f"cannot write decoded images to {tried}; set data.cache_dir to a writable folder")

    def lock(self) -> BaseFileLock:
        """A lock that lets only one process decode; the others wait."""
        return FileLock(self.folder / ".lock")

    def write(self, side: int, content: Decoded) -> None:
        about = {name: value for name, value in vars(content).items() if name != "images"}
        try:
            for temporary in self.folder.glob(".*.tmp"):
                with suppress(FileNotFoundError):
                    if time.time() - temporary.stat().st_mtime > STALE_SECONDS:
                        temporary.unlink()
            with replacing(self._pixels(side)) as temporary, temporary.open("wb") as file:
                np.save(file, content.images, allow_pickle=False)
            write_text(self._about(side), json.dumps({**about, "sum": _checksum(content.images, about)}))
        except OSError as error:
            raise UserError(
                f"cannot write decoded images to {self.folder} ({error.strerror}); set data.cache_dir to another folder"
            ) from error

    def read(self, side: int) -> Decoded | None:
        """The images of this side; None if there are none, or if they are damaged, with a warning."""
        if not self._about(side).exists():
            return None
        try:
            about = json.loads(self._about(side).read_text(encoding="utf-8"))
            # Memory-mapped, so that the processes of a machine share one copy. torch wants a writable array, hence
            # copy-on-write ("c"); nobody writes to it.
            images = np.load(self._pixels(side), mmap_mode="c", allow_pickle=False)
            if about.pop("sum") != _checksum(images, about):
                raise ValueError("wrong checksum")
            return Decoded(images, **about)
        except Exception as error:  # the readers of damaged files raise anything
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            log.warning(f"the decoded images in {self._pixels(side)} are damaged ({reason}); decoding the files again")
            return None

    def store_size(self, image_size: int, side: int) -> None:
        """Remember the side chosen for a model with this input size."""
        write_text(self.folder / f"{self.key}-auto{image_size}.txt", str(side))

    def cached_size(self, image_size: int) -> int | None:
        """The side chosen before for a model with this input size; None if there is none or the file is damaged."""
        try:
            return int((self.folder / f"{self.key}-auto{image_size}.txt").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _pixels(self, side: int) -> Path:
        return self.folder / f"{self.key}-{side}.npy"

    def _about(self, side: int) -> Path:
        return self.folder / f"{self.key}-{side}.json"


def _checksum(images: NDArray[np.uint8], about: dict[str, Any]) -> int:
    return crc32(json.dumps(about).encode(), crc32(np.ascontiguousarray(images).data))
