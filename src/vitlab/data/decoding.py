"""Decode image files to pixels, and cache the decoded images on disk."""

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vitlab.data.arrays import ImageArrays
from vitlab.errors import UserError, first_line
from vitlab.files import replacing, write_text

log = logging.getLogger(__name__)

STALE_SECONDS = 3600  # age at which a temporary file counts as left behind by a killed process


def read_image(path: Path) -> Image.Image:
    """Read an image file as upright RGB, transparent images on white; raises anything, see `describe_failure`."""
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


def decode_files(paths: Iterable[Path], size: int) -> Iterator[NDArray[np.uint8] | str]:
    """Decode files on all cores: uint8 `[3, size, size]` each, or the reason why it can't be read."""

    def decode(path: Path) -> NDArray[np.uint8] | str:
        try:
            return to_square(read_image(path), size)
        except Exception as error:  # Pillow's decoders raise anything
            return describe_failure(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside the interpreter lock
        yield from pool.map(decode, paths)


@dataclass(frozen=True)
class Decoded:
    """The decoded images of all splits."""

    images: NDArray[np.uint8]  # [N, 3, S, S]
    labels: list[int]
    names: list[str]  # `<split>/...`
    classes: list[str]
    skipped: dict[str, str]  # the unreadable files, with the reasons

    def split(self, split: str) -> ImageArrays:
        """The images whose names start with `split/`."""
        rows = [row for row, name in enumerate(self.names) if name.startswith(f"{split}/")]
        every = ImageArrays.of(torch.from_numpy(self.images), torch.tensor(self.labels), self.names)
        return every.take(torch.tensor(rows, dtype=torch.long))


@dataclass(frozen=True)
class DecodedCache:
    """Decoded images on disk, under a key that changes with the source files: `<key>-<side>.npy` holds the pixels,
    `<key>-<side>.json` the rest and a checksum, `<key>-auto<image_size>.txt` the side chosen for that input size."""

    folder: Path
    key: str

    @classmethod
    def choose(cls, folder: Path | None, *, beside: Path, key: str) -> "DecodedCache":
        """Use `folder` if given, else one next to the data or in the home directory: the first that already holds
        `key`, else the first that is writable; a UserError if none is."""
        candidates = [folder] if folder else [beside / ".vitlab_cache", Path.home() / ".cache" / "vitlab"]
        for candidate in candidates:
            if any(candidate.glob(f"{key}-*.npy")):
                return cls(candidate, key)
        for candidate in candidates:
            with suppress(OSError):
                candidate.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=candidate).close()
                return cls(candidate, key)
        tried = " or ".join(map(str, candidates))
        raise UserError(f"cannot write decoded images to {tried}; set data.cache_dir to a writable folder")

    def write(self, side: int, content: Decoded) -> Decoded:
        """Write the images, and return them in memory that other processes share."""
        about = {name: value for name, value in vars(content).items() if name != "images"}
        try:
            for temporary in self.folder.glob(".*.tmp"):
                with suppress(FileNotFoundError):
                    if time.time() - temporary.stat().st_mtime > STALE_SECONDS:
                        temporary.unlink()
            with replacing(self._file(f"{side}.npy")) as temporary, temporary.open("wb") as file:
                np.save(file, content.images, allow_pickle=False)
            about["sum"] = _checksum(content.images, about)
            write_text(self._file(f"{side}.json"), json.dumps(about))
        except OSError as error:
            raise UserError(
                f"cannot write decoded images to {self.folder} ({error.strerror}); set data.cache_dir to another folder"
            ) from error
        return self.read(side) or content

    def read(self, side: int) -> Decoded | None:
        """The images of this side; None if there are none, or if they are damaged, with a warning."""
        pixels, about_file = self._file(f"{side}.npy"), self._file(f"{side}.json")
        if not about_file.exists():
            return None
        try:
            about = json.loads(about_file.read_text(encoding="utf-8"))
            # Memory-mapped, so that the processes of a machine share one copy. torch wants a writable array, hence
            # copy-on-write ("c"); nobody writes to it.
            images = np.load(pixels, mmap_mode="c", allow_pickle=False)
            if about.pop("sum") != _checksum(images, about):
                raise ValueError("wrong checksum")
            return Decoded(images, **about)
        except Exception as error:  # the readers of damaged files raise anything
            log.warning(f"the decoded images in {pixels} are damaged ({first_line(error)}); decoding the files again")
            return None

    def store_size(self, image_size: int, side: int) -> None:
        write_text(self._file(f"auto{image_size}.txt"), str(side))

    def cached_size(self, image_size: int) -> int | None:
        """The side chosen before for a model with this input size; None if there is none or the file is damaged."""
        try:
            return int(self._file(f"auto{image_size}.txt").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _file(self, name: str) -> Path:
        return self.folder / f"{self.key}-{name}"


def _checksum(images: NDArray[np.uint8], about: dict[str, Any]) -> int:
    return crc32(json.dumps(about).encode(), crc32(np.ascontiguousarray(images).data))
