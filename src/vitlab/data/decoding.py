"""Decode image files to pixels, and cache the decoded images on disk."""

import hashlib
import io
import json
import logging
import math
import os
import re
import shutil
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rich.filesize import decimal

from vitlab.data.arrays import ImageArrays
from vitlab.errors import UserError, first_line
from vitlab.files import write_text
from vitlab.runs.console import show
from vitlab.runs.progress import track
from vitlab.system import replace

with suppress(ImportError):  # the extra "heic"
    import pillow_heif

    pillow_heif.register_heif_opener()

log = logging.getLogger(__name__)

# Formats that Pillow only recognises, or reads with other programs.
NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
RAW = {".arw", ".cr2", ".dng", ".nef", ".orf", ".pef", ".srw"}  # TIFF files of cameras: Pillow would read the thumbnail
HEIC = {".heic", ".heif", ".hif"}
WHITES = (1, 255, 4095, 65535)  # values that mean white in files with more than 8 bits
STALE = {".*.tmp": 3600, "*.part*": 7 * 86400}  # seconds after which files of killed processes are deleted
SAVE_SECONDS = 10.0  # between two notes of how far the decoding is
FORMAT = 2  # of the cache and of how values are read
CACHE_FILE = re.compile(r"[0-9a-f]{24}-(auto)?\d+\.(npy|json|txt|part|part\.json)")  # see `DecodedCache`


def read_image(path: Path) -> Image.Image:
    """Read an image file as upright RGB, transparent images on white; raises anything, see `describe_failure`.

    The content decides, whatever the name. Grey is copied to three channels. Values of more than 8 bits are scaled so
    that the smallest of `WHITES` (of integers, from 255 on) that no value exceeds is white; others are a ValueError.
    `info["remark"]` says both.
    """
    try:
        opened = Image.open(path)
    except Image.UnidentifiedImageError:
        raise ValueError(_describe_unknown(path)) from None
    with opened as file:
        return to_rgb(file)


def to_rgb(file: Image.Image) -> Image.Image:
    """A Pillow image of any mode as `read_image` returns it; ValueError if it is unknown which value is white."""
    image = ImageOps.exif_transpose(file)
    remark = "grey" if file.mode in ("1", "L", "LA") else ""
    if image.mode.startswith(("I", "F")):
        image, remark = _scale_values(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    image.info["remark"] = remark
    return image


def _scale_values(image: Image.Image) -> tuple[Image.Image, str]:
    """Grey of 16 or 32 bits as 8 bits: Pillow would clip it at 255."""
    values = np.asarray(image, dtype=np.float64)
    low, high = values.min(), values.max()
    white = next((white for white in WHITES[image.mode != "F" :] if low >= 0 and high <= white), None)
    if white is None:
        raise ValueError(f"values from {low:g} to {high:g}, so that it is unknown which is white: save it with 8 bits")
    return Image.fromarray(np.rint(values / (white / 255)).astype(np.uint8)), f"grey with white at {white:,}"


def _describe_unknown(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(64)
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        return "a HEIC image, which pip install pillow-heif makes readable"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer: git lfs pull downloads the image"
    return "not an image that Pillow can read" if head else "an empty file"


@cache
def image_suffixes() -> frozenset[str]:
    """Lower-case suffixes of the files that Pillow can read: `.jpg`, `.png` ..."""
    kinds = set(Image.registered_extensions().values()) & set(Image.OPEN) - NOT_DECODED
    readable = {suffix for suffix, kind in Image.EXTENSION.items() if kind in kinds}
    return frozenset(readable | {".mpo"})  # Pillow reads it as JPEG and registers it only for writing


def has_image(path: str) -> bool:
    """Whether a file whose suffix tells nothing holds an image, by its first bytes."""
    known = [kind for kind, (_, accept) in Image.OPEN.items() if accept and kind not in NOT_DECODED]
    try:
        with Image.open(path, formats=known):
            return True
    except Exception:  # Pillow's readers raise anything
        return False


def to_square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Resize the shorter side to `size` (bicubic, antialiased) and crop the centre: uint8 `[3, size, size]`."""
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def describe_failure(error: Exception) -> str:
    """The reason why a file could not be read, in a few words."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class DecodedFile(NamedTuple):
    """A decoded image file."""

    pixels: NDArray[np.uint8] | None  # [3, S, S]; None if the file can't be read
    remark: str = ""  # then the reason; else how its values were read, if unusual


def decode_files(files: Iterable[Path | Image.Image], size: int) -> Iterator[DecodedFile]:
    """Decode files, or RGB images, on all cores, with sides of `size` pixels; only a few wait in memory for the
    caller."""

    def decode(file: Path | Image.Image) -> DecodedFile:
        try:
            image = read_image(file) if isinstance(file, Path) else file
            return DecodedFile(to_square(image, size), image.info["remark"])
        except Exception as error:  # Pillow's decoders raise anything
            return DecodedFile(None, describe_failure(error))

    workers = os.cpu_count() or 1
    waiting: deque[Future[DecodedFile]] = deque()
    with ThreadPoolExecutor(workers) as pool:  # Pillow decodes outside the interpreter lock
        for file in files:
            waiting.append(pool.submit(decode, file))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)


@dataclass(frozen=True)
class Decoded:
    """The decoded images of all splits."""

    images: NDArray[np.uint8]  # [N, 3, S, S]; black if a file can't be read
    splits: list[str]  # of each image
    labels: list[int]
    names: list[str]
    classes: list[str]
    skipped: dict[str, str]  # names of the unreadable files, with the reasons
    remarks: dict[str, int]  # number of images whose values were read unusually

    def split(self, split: str) -> ImageArrays:
        """The readable images of a split."""
        named = enumerate(zip(self.splits, self.names, strict=True))
        rows = [row for row, (own, name) in named if own == split and name not in self.skipped]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch has no read-only tensors; nobody writes to this one
            images = torch.from_numpy(self.images)
        every = ImageArrays.of(images, torch.tensor(self.labels), self.names)
        return every.take(torch.tensor(rows, dtype=torch.long))


@dataclass(frozen=True)
class DecodedCache:
    """Decoded images on disk, under a key that changes with the source files: `<key>-<side>.npy` holds the pixels,
    `<key>-<side>.json` the rest and a checksum, `<key>-auto<image_size>.txt` the side chosen for that input size.
    `<key>-<side>.part` and `.part.json` are those of a decoding that is not finished."""

    folder: Path
    key: str

    @classmethod
    def candidates(cls, folder: Path | None, *, beside: Path, sources: object) -> list["DecodedCache"]:
        """The caches that may hold the images of `sources`: in `folder` if given, else next to the data and in the home
        directory. If not next to the data, the key has their folder too: others may have files of the same names."""
        elsewhere = cls(folder or Path.home() / ".cache" / "vitlab", _key(sources, os.path.realpath(beside)))
        return [elsewhere] if folder else [cls(beside / ".vitlab_cache", _key(sources)), elsewhere]

    def write(self, side: int, about: dict[str, Any], decode: Callable[[int], Iterator[DecodedFile]]) -> Decoded:
        """Write images while they are decoded, and return them in memory that other processes share.

        `about` holds the lists of `Decoded`; `decode(n)` gives the images from the nth on. After an interruption, also
        by a kill, the next call continues. Raises a UserError if the disk is too small.
        """
        names, part, state_file = about["names"], self._file(f"{side}.part"), self._file(f"{side}.part.json")
        shape = len(names), 3, side, side
        try:
            for stale, age in ((stale, age) for pattern, age in STALE.items() for stale in self.folder.glob(pattern)):
                with suppress(FileNotFoundError):
                    if time.time() - stale.stat().st_mtime > age:
                        stale.unlink()
            with part.open("ab") as file:
                state = _continue(file, shape, state_file)
                left, free = len(names) - state["images"], shutil.disk_usage(self.folder).free
                size = left * math.prod(shape[1:])
                what = f"decoding {left:,} of {len(names):,} images at {side} px into {self.folder} ({decimal(size)}"
                if size > free:
                    raise UserError(f"{what}, but only {decimal(free)} are free): set data.cache_dir to a larger disk")
                show(f"{what})")
                saved = time.monotonic()
                try:
                    for pixels, remark in track(decode(state["images"]), "decoding", left):
                        if pixels is None:
                            state["skipped"][names[state["images"]]] = remark
                        elif remark:
                            state["remarks"][remark] = state["remarks"].get(remark, 0) + 1
                        row = bytes(math.prod(shape[1:])) if pixels is None else pixels.data
                        file.write(row)
                        state |= {"images": state["images"] + 1, "sum": crc32(row, state["sum"])}
                        if time.monotonic() - saved > SAVE_SECONDS:
                            _save(state, file, state_file)
                            saved = time.monotonic()
                finally:
                    _save(state, file, state_file)
            about = {**about, "skipped": state["skipped"], "remarks": state["remarks"]}
            about["sum"] = crc32(json.dumps(about).encode(), state["sum"])
            replace(part, self._file(f"{side}.npy"))
            write_text(self._file(f"{side}.json"), json.dumps(about))
            state_file.unlink()
        except OSError as error:
            raise UserError(
                f"cannot write decoded images to {self.folder} ({error.strerror}); set data.cache_dir to another folder"
            ) from error
        if written := self.read(side):
            return written
        raise UserError(f"the images decoded into {self.folder} are damaged; set data.cache_dir to another disk")

    def read(self, side: int) -> Decoded | None:
        """The images of this side; None if there are none, or if they are damaged, with a warning."""
        pixels = self._file(f"{side}.npy")
        try:
            text = self._file(f"{side}.json").read_bytes()
        except OSError:  # there are none, or they are somebody else's
            return None
        try:
            about = json.loads(text)
            # Memory-mapped, so that the processes of a machine share one copy. Read-only: Linux refuses a writable map
            # that is larger than the memory.
            images = np.load(pixels, mmap_mode="r", allow_pickle=False)
            if about.pop("sum") != crc32(json.dumps(about).encode(), crc32(images.data)):
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


def read_any(caches: Sequence[DecodedCache], side: int) -> Decoded | None:
    """The images of this side in the first of the caches that has them."""
    return next(filter(None, (place.read(side) for place in caches)), None)


def first_writable(caches: Sequence[DecodedCache]) -> DecodedCache:
    """The first of the caches that can be written to, whose folder is made; a UserError if none can."""
    for place in caches:
        with suppress(OSError):
            place.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=place.folder).close()
            return place
    tried = " or ".join(str(place.folder) for place in caches)
    raise UserError(f"cannot write decoded images to {tried}; set data.cache_dir to a writable folder")


def _key(*of: object) -> str:
    return hashlib.sha256(repr((FORMAT, *of)).encode()).hexdigest()[:24]


def _continue(file: IO[bytes], shape: tuple[int, ...], state_file: Path) -> dict[str, Any]:
    """Cut a half-written .npy file to the images that were saved, to none without a state; returns the state: number
    and checksum of the images, and `skipped` and `remarks` of `Decoded`."""
    start = io.BytesIO()
    np.lib.format.write_array_header_1_0(start, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with suppress(OSError, ValueError, KeyError, TypeError):
        state: dict[str, Any] = json.loads(state_file.read_text(encoding="utf-8"))
        end = start.tell() + state["images"] * math.prod(shape[1:])
        if state["images"] and file.seek(0, os.SEEK_END) >= end:
            file.truncate(end)
            return state
    file.truncate(0)
    file.write(start.getvalue())
    return {"images": 0, "sum": 0, "skipped": {}, "remarks": {}}


def _save(state: dict[str, Any], file: IO[bytes], state_file: Path) -> None:
    file.flush()
    os.fsync(file.fileno())  # the state must not be ahead of the file
    write_text(state_file, json.dumps(state))
