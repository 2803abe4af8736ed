"""Decoded images, kept for the next start."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitlab.errors import UserError
from vitlab.files import replacing, write_text


@dataclass(frozen=True)
class Decoded:
    """All decoded images of a root: pixels uint8 `[N, 3, S, S]`, labels, names, and the files that can't be read."""

    images: NDArray[np.uint8]
    labels: list[int]
    names: list[str]
    classes: list[str]
    skipped: dict[str, str]

    def split(self, split: str) -> tuple[Tensor, Tensor, list[str]]:
        """Images, labels (int64) and names of the files below `split/`."""
        rows = [i for i, name in enumerate(self.names) if name.startswith(f"{split}/")]
        # The files of a split follow each other, so a slice serves: no copy of the pixels.
        place = slice(rows[0], rows[-1] + 1) if rows else slice(0)
        return (
            torch.from_numpy(self.images[place]),
            torch.tensor(self.labels[place], dtype=torch.int64),
            self.names[place],
        )


@dataclass(frozen=True)
class DecodedCache:
    """A folder with two files an entry: `<key>.npy`, the pixels, and `<key>.json`, all else, written last."""

    folder: Path

    @classmethod
    def choose(cls, folder: Path | None, *, beside: Path) -> "DecodedCache":
        """The first of these folders that can be written to: `folder` if given, else beside the data, else the home's.

        Raises:
            UserError: none can.
        """
        candidates = [folder] if folder else [beside / ".vitlab_cache", Path.home() / ".cache" / "vitlab"]
        for candidate in candidates:
            try:
                candidate.mkdir(parents=True, exist_ok=True)
                with replacing(candidate / "writable") as temporary:
                    temporary.touch()
                (candidate / "writable").unlink()
            except OSError:
                continue
            return cls(candidate)
        raise UserError(f"can't write to {' or '.join(map(str, candidates))}: name a folder with data.cache_dir=...")

    def has(self, key: str) -> bool:
        return (self.folder / f"{key}.json").exists()

    def write(self, key: str, content: dict[str, Any]) -> None:
        """Stores `Decoded`'s fields."""
        about = dict(content)
        with replacing(self.folder / f"{key}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, about.pop("images"), allow_pickle=False)
        write_text(self.folder / f"{key}.json", json.dumps(about))

    def read(self, key: str) -> Decoded:
        about = json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8"))
        return Decoded(np.load(self.folder / f"{key}.npy", allow_pickle=False), **about)
