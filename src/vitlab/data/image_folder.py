"""Image files in folders named after their classes."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from PIL import Image
from rich.progress import track

from vitlab.data.arrays import Dataset, stratified_split
from vitlab.data.datamodule import ImageDataModule
from vitlab.data.decoding import Decoded, DecodedCache, decode_files, image_suffixes
from vitlab.errors import UserError


class ImageFile(NamedTuple):
    """An image file, with size and time to recognise changes by."""

    name: str  # path relative to the root
    label: int
    size: int
    modified_ns: int


class ImageFolderDataModule(ImageDataModule):
    """`root/train/<class>/*` and `root/test/<class>/*`, in any format that Pillow reads.

    The files are decoded once, in parallel, into a uint8 array that is kept on disk for the next start. Square images
    that share one size of at most `image_size` pixels are stored as they are. All others are resized (shorter side,
    bicubic) and centre-cropped to `stored_size`, or to `image_size` if that is None.

    Args:
        root: Folder with `train/` and `test/`. Without `test/`, `test_size` of the images are held out.
        test_size: Fraction below 1, or number, of images; stratified, drawn with `split_seed`.
        cache_dir: Folder for the decoded images; None is `root/.vitlab_cache`, or ~/.cache/vitlab if that is read-only.
        skip_unreadable: Leave out unreadable files; otherwise `fetch` raises a UserError that names all of them.
        **shared: See `ImageDataModule`.
    """

    def __init__(
        self, *, root: str, test_size: float, cache_dir: str | None, skip_unreadable: bool, **shared: Any
    ) -> None:
        super().__init__(**shared)
        self.root = Path(root).expanduser()
        self.test_size = test_size
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        self.skip_unreadable = skip_unreadable
        self._decoded: Decoded | None = None

    def fetch(self) -> None:
        self._decoded = self._read()

    def _read(self) -> Decoded:
        classes = self._class_names()
        files = [file for split in ("train", "test") for file in _list_files(self.root, split, classes)]
        if not any(file.name.startswith("train/") for file in files):
            raise UserError(f"no image files in {self.root / 'train'}/<class>/")
        key = hashlib.sha256("".join(map(repr, files)).encode()).hexdigest()[:24]
        cache = DecodedCache.choose(self.cache_dir, beside=self.root, key=key)
        if cached := self._cached(cache):
            return cached
        with FileLock(cache.folder / ".lock"):
            # Another process, such as a rank of the same run, may have decoded meanwhile.
            return self._cached(cache) or self._decode(cache, files, classes)

    def load(self) -> Dataset:
        decoded = self._decoded or self._read()
        train, test = decoded.split("train"), decoded.split("test")
        if not len(test):
            try:
                kept, held_out = stratified_split(train.labels, self.test_size, self.split_seed)
            except ValueError as error:
                raise UserError(f"data: {error}; change data.test_size") from None
            train, test = train.take(kept), train.take(held_out)
        return Dataset(train, test, decoded.classes)

    def _class_names(self) -> list[str]:
        train, test = self.root / "train", self.root / "test"
        classes = _subfolders(train)
        if not classes:
            missing = f"are no class folders in {train}" if train.is_dir() else f"is no folder {train}"
            raise UserError(
                f"data.root={self.root}: there {missing}; vitlab reads {self.root}/train/<class>/* and, if it exists, "
                f"{self.root}/test/<class>/*"
            )
        if unknown := sorted(set(_subfolders(test)) - set(classes)):
            raise UserError(f"{test} has classes that {train} lacks: {', '.join(unknown)}")
        return classes

    def _cached(self, cache: DecodedCache) -> Decoded | None:
        side = self.stored_size or cache.cached_size(self.image_size)
        found = cache.read(side) if side else None
        return None if found is None or (found.skipped and not self.skip_unreadable) else found

    def _decode(self, cache: DecodedCache, files: list[ImageFile], classes: list[str]) -> Decoded:
        side = self.stored_size or self._common_side(files)
        results = decode_files((self.root / file.name for file in files), side)
        decoded = list(track(results, f"Decoding into {cache.folder}", total=len(files), transient=True))
        skipped = {file.name: why for file, why in zip(files, decoded, strict=True) if isinstance(why, str)}
        if skipped and not self.skip_unreadable:
            listed = "\n".join(f"  {self.root / name}: {why}" for name, why in skipped.items())
            raise UserError(
                f"{len(skipped)} image files can't be read; repair or remove them, or leave them out with "
                f"data.skip_unreadable=true:\n{listed}"
            )
        if len(skipped) == len(files):
            raise UserError(f"none of the {len(files)} image files in {self.root} can be read")
        images = np.stack([pixels for pixels in decoded if not isinstance(pixels, str)])
        kept = [file for file in files if file.name not in skipped]
        labels, names = [file.label for file in kept], [file.name for file in kept]
        stored = cache.write(side, Decoded(images, labels, names, classes, skipped))
        if self.stored_size is None:
            cache.store_size(self.image_size, side)
        return stored

    def _common_side(self, files: list[ImageFile]) -> int:
        """The side to store: that of the files if all share one of at most `image_size`, else `image_size`."""
        sizes = set()
        for file in files:
            try:
                with Image.open(self.root / file.name) as image:  # reads only the header
                    sizes.add(image.size)
            except Exception:
                continue  # `_decode` reports it
            if len(sizes) > 1 or max(image.size) > self.image_size or image.width != image.height:
                return self.image_size
        return sizes.pop()[0] if sizes else self.image_size


def _subfolders(folder: Path) -> list[str]:
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _list_files(root: Path, split: str, classes: list[str]) -> Iterator[ImageFile]:
    # Strings: pathlib takes ten times as long for 60,000 files.
    known = tuple(image_suffixes())
    for label, name in enumerate(classes):
        found: list[str] = []
        top = str(root / split / name)
        for folder, _, entries in os.walk(top):
            found += [f"{folder}{os.sep}{entry}" for entry in entries if entry.lower().endswith(known)]
        for path in sorted(found):
            try:
                status = os.stat(path)  # noqa: PTH116
                stamp = status.st_size, status.st_mtime_ns
            except OSError:  # such as a broken link; `_decode` reports it
                stamp = 0, 0
            below = path[len(top) + 1 :].replace(os.sep, "/")
            yield ImageFile(f"{split}/{name}/{below}", label, *stamp)
