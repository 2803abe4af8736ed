"""Decoded images, kept for the next start."""

import json
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray

from vitlab.data.arrays import ImageArrays
from vitlab.errors import UserError
from vitlab.files import replacing, write_text

log = logging.getLogger(__name__)

STALE_SECONDS = 3600


@dataclass(frozen=True)
class Decoded:
    """All decoded images of a root: pixels uint8 `[N, 3, S, S]`, labels, names, and the files that can't be read."""

    images: NDArray[np.uint8]
    labels: list[int]
    names: list[str]
    classes: list[str]
    skipped: dict[str, str]

    def split(self, split: str) -> ImageArrays:
        """The files below `split/`."""
        rows = [i for i, name in enumerate(self.names) if name.startswith(f"{split}/")]
        return ImageArrays(
            torch.from_numpy(self.images),
            torch.tensor(rows, dtype=torch.int64),
            torch.tensor([self.labels[row] for row in rows], dtype=torch.int64),
            [self.names[row] for row in rows],
        )


@dataclass(frozen=True)
class DecodedCache:
    """Two files an entry: `<key>-<side>.npy`, the pixels, and `<key>-<side>.json`, the rest and a checksum.

    `<key>-auto<image_size>.json` notes the side that images of this key are stored at for a network of this size.
    """

    folder: Path

    @classmethod
    def choose(cls, folder: Path | None, *, beside: Path, key: str) -> "DecodedCache":
        """The first of these folders that has `key`, else the first that can be written to: `folder` if given, else
        beside the data, else in the home.

        Raises:
            UserError: none can.
        """
        candidates = [folder] if folder else [beside / ".vitlab_cache", Path.home() / ".cache" / "vitlab"]
        for candidate in candidates:
            if candidate.is_dir() and any(candidate.glob(f"{key}-*.npy")):
                return cls(candidate)
        for candidate in candidates:
            try:
                candidate.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=candidate).close()
            except OSError:
                continue
            return cls(candidate)
        raise UserError(f"can't write to {' or '.join(map(str, candidates))}: name a folder with data.cache_dir=...")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other processes from decoding the same images at the same time: they wait."""
        with FileLock(self.folder / ".lock"):
            yield

    def write(self, key: str, side: int, content: Decoded) -> None:
        about = {name: value for name, value in vars(content).items() if name != "images"}
        try:
            for left in self.folder.glob(".*.tmp"):  # by a killed process, unless it is still written to
                with suppress(FileNotFoundError):
                    if time.time() - left.stat().st_mtime > STALE_SECONDS:
                        left.unlink()
            with replacing(self.folder / f"{key}-{side}.npy") as temporary, temporary.open("wb") as file:
                np.save(file, content.images, allow_pickle=False)
            write_text(self.folder / f"{key}-{side}.json", json.dumps({**about, "sum": _sum(content.images, about)}))
        except OSError as error:
            raise UserError(
                f"can't keep the decoded images in {self.folder} ({error.strerror}): name a folder with "
                "data.cache_dir=..."
            ) from error

    def read(self, key: str, side: int) -> Decoded | None:
        """An entry; None where there is none, or a damaged one, which is said."""
        file = self.folder / f"{key}-{side}.json"
        if not file.exists():
            return None
        try:
            about = json.loads(file.read_text(encoding="utf-8"))
            # Mapped: the processes of a machine share one copy. "c": what torch takes for writable, and nobody writes.
            images = np.load(self.folder / f"{key}-{side}.npy", mmap_mode="c", allow_pickle=False)
            if about.pop("sum") != _sum(images, about):
                raise ValueError("its checksum is wrong")
            return Decoded(images, **about)
        except Exception as error:  # whatever the readers of these formats stumble on
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            log.warning(f"the decoded images in {file.with_suffix('.npy')} are damaged ({reason}): decoding them again")
            return None

    def note_side(self, key: str, image_size: int, side: int) -> None:
        note = f"{key}-{image_size}-{side}"
        write_text(self.folder / f"{key}-auto{image_size}.json", json.dumps([side, crc32(note.encode())]))

    def recall_side(self, key: str, image_size: int) -> int | None:
        """The noted side; None where there is none, or the note is damaged."""
        try:
            side, found = json.loads((self.folder / f"{key}-auto{image_size}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            return None
        return side if found == crc32(f"{key}-{image_size}-{side}".encode()) else None


def _sum(images: NDArray[np.uint8], about: dict[str, Any]) -> int:
    """CRC-32 of all of an entry."""
    return crc32(json.dumps(about).encode(), crc32(np.ascontiguousarray(images).data))
