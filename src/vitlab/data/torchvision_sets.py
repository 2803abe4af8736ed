"""Data sets of torchvision by name: SVHN, FashionMNIST, STL10 ..."""

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from PIL import Image
from torchvision import datasets

from vitlab.data.arrays import Dataset
from vitlab.data.datamodule import ImageDataModule, hold_out
from vitlab.data.decoding import Decoded, DecodedCache, DecodedFile, first_writable, read_any, to_square
from vitlab.errors import UserError, did_you_mean, first_line
from vitlab.files import expand_home

# Values of the argument `split` by which torchvision's data sets name their parts.
SPLIT_ARGUMENTS = {"train": ("train", "trainval"), "val": ("val", "valid"), "test": ("test",)}
TEST_SIZE = 0.1  # fraction of the images held out if a data set has one part only


class TorchvisionDataModule(ImageDataModule):
    """A classification data set of `torchvision.datasets`, downloaded by torchvision into `root`.

    Its images are decoded once, see `ImageFolderDataModule`. `fetch` raises a UserError if there is no data set of that
    name, if it has no classes, or if it can't be downloaded.

    Args:
        name: Of a class in `torchvision.datasets`, such as "SVHN".
        root: Folder for the download and the decoded images.
        options: Further arguments of the class: `{split: balanced}` of EMNIST.
        **shared: See `ImageDataModule`.
    """

    def __init__(self, *, name: str, root: str, options: Mapping[str, Any], **shared: Any) -> None:
        super().__init__(**shared)
        self.dataset = name
        self.root = Path(expand_home(root))
        self.options = dict(options)
        self._decoded: Decoded | None = None

    def fetch(self) -> None:
        self._decoded = self._read()

    def load(self) -> Dataset:
        decoded = self._decoded or self._read()
        train, val, test = (decoded.split(split) for split in SPLIT_ARGUMENTS)
        if not len(test):
            train, test = hold_out(train, TEST_SIZE, self.split_seed, "data.split_seed")
            self.notes = [f"{self.dataset} has no test images: a tenth of its images are held out"]
        return Dataset(train, test, decoded.classes, val if len(val) else None)

    def _read(self) -> Decoded:
        side = self.stored_size or self.image_size
        sources = "torchvision", 2, self.dataset, self.options  # 2: of how parts and labels are read
        caches = DecodedCache.candidates(None, beside=self.root, sources=sources)
        if found := read_any(caches, side):
            return found
        cache = first_writable(caches)
        with FileLock(cache.folder / ".lock"):  # one process downloads and decodes
            return cache.read(side) or self._decode(cache, side)

    def _decode(self, cache: DecodedCache, side: int) -> Decoded:
        parts, labels = {}, []
        for split, part in self._parts().items():
            of_part = _labels(part)
            if None not in of_part:  # FER2013 and CLEVRClassification have test images without labels
                parts[split] = part
                labels += [int(label) for label in of_part]
        names = [f"{split}/{number}" for split, part in parts.items() for number in range(len(part))]
        classes = getattr(parts["train"], "classes", None)
        if not classes:  # the labels need not count from 0
            classes = sorted(set(labels))
            place = {value: number for number, value in enumerate(classes)}
            labels = [place[value] for value in labels]
        about = {
            "splits": [split for split, part in parts.items() for _ in range(len(part))],
            "labels": labels,
            "names": names,
            "classes": [" ".join(name) if isinstance(name, tuple) else str(name) for name in classes],
        }

        def decode(start: int) -> Iterator[DecodedFile]:
            for part in parts.values():
                for number in range(min(start, len(part)), len(part)):
                    image: Image.Image = part[number][0]
                    yield DecodedFile(to_square(image.convert("RGB"), side), "grey" if image.mode == "L" else "")
                start = max(0, start - len(part))

        return cache.write(side, about, decode)

    def _parts(self) -> dict[str, Any]:
        """The data set's parts by split, with a label for each image."""
        named = {name: getattr(datasets, name) for name in datasets.__all__}
        known = {n for n, c in named.items() if isinstance(c, type) and issubclass(c, datasets.VisionDataset)}
        if self.dataset not in known:
            raise UserError(
                f"data.name={self.dataset}: torchvision has no such data set{did_you_mean(self.dataset, known)}"
            )
        make = named[self.dataset]
        parameters = _parameters(make)
        given: dict[str, Any] = {"root": str(self.root), **self.options}
        if "download" in parameters:
            given.setdefault("download", True)
        found: dict[str, Any] = {}
        refusal: ValueError | None = None
        try:
            if "train" in parameters and not {"train", "what"} & set(self.options):  # `what` is QMNIST's
                found = {split: make(train=split == "train", **given) for split in ("train", "test")}
            elif "split" in parameters and "split" not in self.options:
                for split, arguments in SPLIT_ARGUMENTS.items():
                    for argument in arguments:
                        try:
                            found[split] = make(split=argument, **given)
                            break
                        except ValueError as error:
                            # "Unknown value": it has no part of this name. Anything else is what the user should read.
                            has_no_part = str(error).startswith("Unknown value")
                            refusal = refusal or error if has_no_part else error
                    if "train" not in found and refusal:
                        raise refusal
            else:
                found = {"train": make(**given)}
            if "train" not in found or not isinstance(found["train"][0][1], int):
                raise UserError(f"data.name={self.dataset}: its images have no classes to learn")
        except UserError:
            raise
        except Exception as error:  # torchvision's loaders and downloads raise anything
            raise UserError(
                f"data.name={self.dataset} can't be loaded from {self.root.resolve()} ({first_line(error)})"
            ) from error
        return found


def _parameters(make: type) -> set[str]:
    """The names of the arguments of a class, with those that it hands on to its base class as keywords."""
    found: set[str] = set()
    for cls in make.__mro__:
        if "__init__" in vars(cls):
            parameters = inspect.signature(vars(cls)["__init__"]).parameters
            found |= set(parameters)
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                break
    return found


def _labels(part: Any) -> list[Any]:
    """The labels of a data set, without decoding its images where it lists them."""
    for name in ("targets", "labels", "_labels"):
        listed = getattr(part, name, None)
        if listed is not None and len(listed) == len(part) and getattr(listed, "ndim", 1) == 1:
            return list(listed)
    return [label for _, label in part]
