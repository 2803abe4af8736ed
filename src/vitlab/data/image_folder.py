"""Image files in folders named after their classes."""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from vitlab.data.arrays import Dataset, stratified_split
from vitlab.data.datamodule import ImageDataModule
from vitlab.data.decoded_cache import Decoded, DecodedCache
from vitlab.data.decoding import describe_failure, picture_suffixes, read_image, to_square
from vitlab.errors import UserError


class ImageFile(NamedTuple):
    """A file of a split: its path relative to the root, its class, and what tells whether it has changed."""

    name: str
    label: int
    size: int
    modified_ns: int


class ImageFolderDataModule(ImageDataModule):
    """`root/train/<class>/*` and `root/test/<class>/*`, any format Pillow reads.

    The files are decoded once, in parallel, into a uint8 array that is kept for the next start. Images that share one
    size of at most `image_size` pixels a side are stored as they are; all others are resized (shorter side, bicubic)
    and centre-cropped to `stored_size`, or to `image_size` where that is None.

    Args:
        root: The folder that holds `train/`, and `test/`; without `test/`, `test_size` of the images are split off.
        test_size: Fraction below 1, or number, of images; stratified, drawn with `split_seed`.
        cache_dir: Where decoded images are kept; None is `root/.vitlab_cache`, or ~/.cache/vitlab if that is read-only.
        skip_unreadable: Go on without the files that can't be read.
        **shared: See `ImageDataModule`.

    Raises:
        UserError: on `fetch`, where folders are missing or files can't be read; all of those are named.
    """

    def __init__(
        self, *, root: str, test_size: float, cache_dir: str | None, skip_unreadable: bool, **shared: Any
    ) -> None:
        super().__init__(**shared)
        self.root = Path(root).expanduser()
        self.test_size = test_size
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        self.skip_unreadable = skip_unreadable

    def fetch(self) -> None:
        classes = self._class_names()
        files = {split: list(_list_files(self.root, split, classes)) for split in ("train", "test")}
        if not files["train"]:
            raise UserError(f"no image files in {self.root / 'train'}/<class>/")
        key = _key(files)
        cache = DecodedCache.choose(self.cache_dir, beside=self.root, key=key)
        decoded = self._read(cache, key)
        if decoded is None:
            with cache.alone():
                # Another process, a rank of the same run perhaps, may have done it meanwhile.
                decoded = self._read(cache, key) or self._fill(cache, key, files, classes)
        self._decoded = decoded

    def _read(self, cache: DecodedCache, key: str) -> Decoded | None:
        # Without a wish for the side, what the files of this key came to once they still come to.
        side = self.stored_size or cache.recall_side(key, self.image_size)
        found = cache.read(key, side) if side else None
        return None if found is None or (found.skipped and not self.skip_unreadable) else found

    def _fill(self, cache: DecodedCache, key: str, files: dict[str, list[ImageFile]], classes: list[str]) -> Decoded:
        side = self.stored_size or self._common_side([file for split in files.values() for file in split])
        decoded = self._decode(files, classes, side, cache.folder)
        if decoded.skipped and not self.skip_unreadable:
            raise UserError(
                f"{len(decoded.skipped)} image files can't be read (data.skip_unreadable=true goes on without "
                "them):\n" + "\n".join(f"  {self.root / name}: {why}" for name, why in decoded.skipped.items())
            )
        cache.write(key, side, decoded)
        if self.stored_size is None:
            cache.note_side(key, self.image_size, side)
        return cache.read(key, side) or decoded

    def load(self) -> Dataset:
        if not hasattr(self, "_decoded"):
            self.fetch()
        classes = self._decoded.classes
        train, test = (self._decoded.split(name) for name in ("train", "test"))
        if not len(test):
            try:
                kept, held_out = stratified_split(train.labels, self.test_size, self.split_seed)
            except ValueError as error:
                raise UserError(f"data: {error}; change data.test_size") from None
            train, test = train.take(kept), train.take(held_out)
        return Dataset(train, test, classes)

    def _class_names(self) -> list[str]:
        train = self.root / "train"
        if not train.is_dir():
            raise UserError(
                f"data.root={self.root}: there is no folder {train}; images are looked for in "
                f"{self.root}/train/<class>/ and {self.root}/test/<class>/"
            )
        classes = _subfolders(train)
        if not classes:
            raise UserError(f"no class folders in {train}; images are looked for in {train}/<class>/")
        strangers = set(_subfolders(self.root / "test")) - set(classes)
        if strangers:
            raise UserError(f"classes in {self.root / 'test'} that {train} lacks: {', '.join(sorted(strangers))}")
        return classes

    def _decode(self, files: dict[str, list[ImageFile]], classes: list[str], side: int, folder: Path) -> Decoded:
        every = [file for split in files.values() for file in split]

        def decode(file: ImageFile) -> NDArray[np.uint8] | str:
            try:
                return to_square(read_image(self.root / file.name), side)
            except Exception as error:  # Pillow's decoders raise whatever they stumble on
                return describe_failure(error)

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside the interpreter lock
            decoded = list(track(pool.map(decode, every), f"decoding into {folder}", total=len(every), transient=True))
        good = [(f, pixels) for f, pixels in zip(every, decoded, strict=True) if not isinstance(pixels, str)]
        skipped = {f.name: why for f, why in zip(every, decoded, strict=True) if isinstance(why, str)}
        if not good:
            raise UserError(f"none of the {len(every)} image files in {self.root} can be read")
        return Decoded(
            images=np.stack([pixels for _, pixels in good]),
            labels=[file.label for file, _ in good],
            names=[file.name for file, _ in good],
            classes=classes,
            skipped=skipped,
        )

    def _common_side(self, files: list[ImageFile]) -> int:
        """The side to store the images at: their own where all share one that the network's is no smaller than."""
        sizes = set()
        for file in files:
            try:
                with Image.open(self.root / file.name) as image:  # reads the header alone
                    sizes.add(image.size)
            except Exception:
                continue  # named, with all others, when it is decoded
            if len(sizes) > 1 or max(image.size) > self.image_size or image.width != image.height:
                return self.image_size
        return sizes.pop()[0] if sizes else self.image_size


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _list_files(root: Path, split: str, classes: list[str]) -> Iterable[ImageFile]:
    # Strings: pathlib takes ten times as long for 60,000 files.
    known = tuple(picture_suffixes())
    for label, name in enumerate(classes):
        found: list[str] = []
        top = str(root / split / name)
        for folder, _, entries in os.walk(top):
            found += [f"{folder}{os.sep}{entry}" for entry in entries if entry.lower().endswith(known)]
        for path in sorted(found):
            try:
                status = os.stat(path)  # noqa: PTH116
                stamp = status.st_size, status.st_mtime_ns
            except OSError:  # a link to nowhere, say: it is named with all that can't be read
                stamp = 0, 0
            below = path[len(top) + 1 :].replace(os.sep, "/")
            yield ImageFile(f"{split}/{name}/{below}", label, *stamp)


def _key(files: dict[str, list[ImageFile]]) -> str:
    digest = hashlib.sha256()
    for split in files.values():
        for file in split:
            digest.update(repr(file).encode())
    return digest.hexdigest()[:24]
