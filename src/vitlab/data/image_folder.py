"""Image files in folders named after their classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from PIL import Image

from vitlab.data.arrays import Dataset
from vitlab.data.datamodule import ImageDataModule, hold_out
from vitlab.data.decoding import Decoded, DecodedCache, decode_files, first_writable
from vitlab.data.folder_layout import SPLITS, FolderLayout, ImageFile, read_layout
from vitlab.errors import UserError
from vitlab.files import expand_home

TEST_SIZE = 0.1  # fraction of the images held out without any test/ or val/


class ImageFolderDataModule(ImageDataModule):
    """`root/train/<class>/*`, `root/val/<class>/*` and `root/test/<class>/*`, in any format that Pillow reads.

    Without `train/` the class folders lie in `root`. Without `val/`, `val_size` of the training images are held out.
    The files are decoded once, in parallel, into a uint8 array that is kept on disk for the next start. Square images
    that share one size of at most `image_size` pixels are stored as they are. All others are resized (shorter side,
    bicubic) and centre-cropped to `stored_size`, or to `image_size` if that is None.

    Args:
        root: Folder of the splits or classes, see `folder_layout.read_layout`.
        test_size: Without `test/`, hold out so many training images: a fraction below 1, or a number; stratified,
            drawn with `split_seed`. None means a tenth; none if there is a `val/`, so that no image is a test image.
        cache_dir: Folder for the decoded images; None is `root/.vitlab_cache`, or ~/.cache/vitlab if that is read-only.
        skip_unreadable: Leave out unreadable files; otherwise `fetch` raises a UserError that names all of them.
        **shared: See `ImageDataModule`.
    """

    def __init__(
        self, *, root: str, test_size: float | None, cache_dir: str | None, skip_unreadable: bool, **shared: Any
    ) -> None:
        super().__init__(**shared)
        self.root = Path(expand_home(root))
        self.test_size = test_size
        self.cache_dir = None if cache_dir is None else Path(expand_home(cache_dir))
        self.skip_unreadable = skip_unreadable
        self._layout_and_images: tuple[FolderLayout, Decoded] | None = None

    def fetch(self) -> None:
        self._layout_and_images = self._read()

    def layout(self) -> FolderLayout:
        """The files to decode, with their splits and classes."""
        return read_layout(self.root, self.classes)

    def _read(self) -> tuple[FolderLayout, Decoded]:
        layout = self.layout()
        caches = DecodedCache.candidates(self.cache_dir, beside=self.root, sources=[file[1:] for file in layout.files])
        decoded = next(filter(None, (self._cached(cache, layout) for cache in caches)), None)
        if decoded is None:
            cache = first_writable(caches)
            with FileLock(cache.folder / ".lock"):
                # Another process, such as a rank of the same run, may have decoded meanwhile.
                decoded = self._cached(cache, layout) or self._decode(cache, layout)
        if decoded.skipped and not self.skip_unreadable:
            listed = "\n".join(f"  {self.root / name}: {why}" for name, why in decoded.skipped.items())
            raise UserError(
                f"{len(decoded.skipped)} image files can't be read; repair or remove them, or leave them out with "
                f"data.skip_unreadable=true:\n{listed}"
            )
        return layout, decoded

    def load(self) -> Dataset:
        layout, decoded = self._layout_and_images or self._read()
        train, val, test = found = [decoded.split(split) for split in SPLITS]
        folders = {split: layout.folders[split] for split, images in zip(SPLITS, found, strict=True) if len(images)}
        if not len(train):
            raise UserError(f"none of the {len(layout.files)} image files in {self.root} can be read")
        held_out = self.test_size if self.test_size is not None else 0 if len(val) else TEST_SIZE
        if held_out and not len(test):
            train, test = hold_out(train, held_out, self.split_seed, "data.test_size")
        self.unreadable = decoded.skipped
        self.notes = [self._describe_splits(folders, held_out), *layout.notes]
        if decoded.skipped:
            name, reason = next(iter(decoded.skipped.items()))
            listed = "listed in unreadable_images.txt of the run"
            self.notes.append(f"left out: {len(decoded.skipped):,} unreadable ({listed}), such as {name}: {reason}")
        if decoded.remarks:
            kinds = ", ".join(f"{count:,} {remark}" for remark, count in decoded.remarks.items())
            self.notes.append(f"grey images, copied to three channels: {kinds}")
            if sum("white" in remark for remark in decoded.remarks) > 1:
                self.notes.append("white differs between these files: if they are one series, save it with 8 bits")
        return Dataset(train, test, layout.classes, val if len(val) else None)  # the cache knows labels, not names

    def _describe_splits(self, folders: Mapping[str, str], held_out: float) -> str:
        """Where the images of each split come from."""
        places = {split: f"from {self._place(folder)}" for split, folder in folders.items()}
        val = places.get("val", f"{self.val_size:g} of these (data.val_size)")
        if "test" in folders:
            test = f"test {places['test']}"
        elif held_out:
            test = f"test: {held_out:g} of these (data.test_size), as no test images are given"
        else:
            test = "no test images, so no test figures (data.test_size=0.1 holds some of train out)"
        val = val if self.val_size else "none (data.val_size=0)"
        return f"splits of {self.root}: train {places['train']}, val {val}, {test}"

    def _place(self, folder: str) -> str:
        """How a note names the place of a split's images."""
        return "its class folders" if folder == "." else f"{folder}/"

    def _cached(self, cache: DecodedCache, layout: FolderLayout) -> Decoded | None:
        """What was decoded before; None also if a file that could not be read then can be read now."""
        side = self.stored_size or cache.cached_size(self.image_size)
        found = cache.read(side) if side else None
        again = [Path(file.path) for file in layout.files if found and file.name in found.skipped]
        return None if any(file.pixels is not None for file in decode_files(again, 1)) else found

    def _decode(self, cache: DecodedCache, layout: FolderLayout) -> Decoded:
        files = layout.files
        side = self.stored_size or self._common_side(files)
        about = {
            "splits": [file.split for file in files],
            "labels": [file.label for file in files],
            "names": [file.name for file in files],
            "classes": layout.classes,
        }
        stored = cache.write(side, about, lambda start: decode_files((Path(f.path) for f in files[start:]), side))
        if self.stored_size is None:
            cache.store_size(self.image_size, side)
        return stored

    def _common_side(self, files: Sequence[ImageFile]) -> int:
        """The side to store: that of the files if all share one of at most `image_size`, else `image_size`."""
        sizes = set()
        for file in files:
            try:
                with Image.open(file.path) as image:  # reads only the header
                    sizes.add(image.size)
            except Exception:
                continue  # `_decode` reports it
            if len(sizes) > 1 or max(image.size) > self.image_size or image.width != image.height:
                return self.image_size
        return sizes.pop()[0] if sizes else self.image_size
