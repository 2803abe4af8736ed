"""ImageDataModule, the base class of every source of images."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from threading import Thread
from typing import Any, Literal, NamedTuple

import torch
from lightning_fabric.utilities import move_data_to_device
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only
from torch import Tensor

from vitlab.compat import is_compiled
from vitlab.data.arrays import Dataset, ImageArrays, stratified_folds, stratified_split
from vitlab.data.counter_rng import CounterRNG
from vitlab.data.loader import ResidentLoader, StoredBatch, epoch_order
from vitlab.data.per_image import as_batch_transform
from vitlab.data.transforms import BatchTransform, Mixing
from vitlab.distributed.process import this_process
from vitlab.errors import UserError, list_some, nearest
from vitlab.runs.console import show


class Batch(NamedTuple):
    """A batch as the model gets it."""

    images: Tensor  # float32 [B, 3, H, W]
    labels: Tensor  # int64 [B], or float32 [B, classes] after mixing
    indices: Tensor  # int64 [B], the images' indices in their split


@dataclass(frozen=True)
class DataSpec:
    """What a loaded data set knows about itself, also where the config left it open."""

    stored_size: int  # side of the images in memory, in pixels
    classes: list[str]  # names, by label
    mean: list[float]  # of each channel on the scale [0, 1], as the images are normalised
    std: list[float]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def as_config(self) -> dict[str, Any]:
        """The same as keys of the config's `data` group."""
        return {**asdict(self), "num_classes": self.num_classes}


class ImageDataModule(LightningDataModule):
    """Load a data set into memory, split it, and serve batches that are augmented on the device.

    A source is a subclass that implements `load`, and `fetch` if there is anything to download or decode. The test
    images are never used for training or model selection. After `setup`, `spec` holds what the config left null.

    Args:
        image_size, stored_size: Sides of the model's input and of the images in memory, in pixels.
        num_classes, classes: Number and names of the classes; other names than all of the data choose these, in this
            order. If they or `stored_size` are None, the data decides.
        mean, std: Per channel, on the scale [0, 1]; None measures them on the training images.
        interpolation: Of the resize from `stored_size` to `image_size`: "bilinear" or "bicubic".
        augmentations: Modules called as `(images, rng, op_index)` on training batches, transforms of single images,
            such as torchvision's, and at most one `Mixing`.
        val_size: Validation images drawn from the training images, stratified: a number, a fraction below 1, or 0. If
            the source has validation images, only 0 counts: do not validate.
        split_seed: The validation split, or the folds, depend only on this.
        folds, fold: Divide the training images into so many stratified folds, and validate on one of them, counted from
            0, instead of `val_size` (cross-validation). None: no folds.
        sampling: "shuffled": an epoch is a permutation. "balanced": all classes occur equally often, see
            `loader.balanced_order`.
        max_train_images: Train on this many images only, chosen stratified; None means all.
        repeated_augmentation: Use each image this often, differently augmented, in an epoch of as many steps (Hoffer et
            al. 2020, "Augment Your Batch").
        batch_size, eval_batch_size: Global batches, divided among the ranks, of training and of everything else.
        seed: Decides the order of the images and their augmentation.
    """

    def __init__(
        self,
        *,
        image_size: int,
        stored_size: int | None,
        num_classes: int | None,
        classes: Sequence[str] | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        interpolation: str,
        augmentations: Sequence[Any],
        val_size: float,
        split_seed: int,
        max_train_images: int | None,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        repeated_augmentation: int = 1,
        folds: int | None = None,
        fold: int = 0,
        sampling: Literal["shuffled", "balanced"] = "shuffled",
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.stored_size = stored_size
        self.num_classes = num_classes
        self.classes = None if classes is None else list(classes)
        self.mean = mean
        self.std = std
        self.interpolation = interpolation
        self.augmentations = [as_batch_transform(a) for a in augmentations if not isinstance(a, Mixing)]
        self.mixing = next((m for m in augmentations if isinstance(m, Mixing) and m.p), None)
        self.val_size = val_size
        self.split_seed = split_seed
        self.max_train_images = max_train_images
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.repeated_augmentation = repeated_augmentation
        self.folds = folds
        self.fold = fold
        self.sampling = sampling
        self.splits: dict[str, ImageArrays] = {}
        self.notes: list[str] = []  # of `load`: facts about the images that a person should know
        self.unreadable: dict[str, str] = {}  # of `load`: files that were left out, with the reasons
        self._fingerprints: dict[str, dict[str, Any]] = {}
        self._hashing: Thread | None = None
        self._train_loader: ResidentLoader | None = None
        self._resumed: dict[str, int] | None = None

    def fetch(self) -> None:
        """Download or decode the data, if the source needs it. Runs before `load`, on one process per machine."""

    def load(self) -> Dataset:
        """Load the data set into memory."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        if not self.splits:
            self.fetch()

    def setup(self, stage: str | None = None) -> None:
        if self.splits:
            return
        dataset = self._choose_classes(self.load())
        self._check(dataset)
        train, val = dataset.train, dataset.val
        if not len(train):
            raise UserError(f"data.classes: no training image is of {list_some(dataset.classes)}: choose other classes")
        if self.folds is not None:
            if val is not None:
                raise UserError(f"data.folds={self.folds}: these images have a validation split of their own")
            if self.folds > len(train):
                raise UserError(f"data.folds={self.folds} is more than the {len(train)} training images: take fewer")
            self.notes.append(f"validation: fold {self.fold} of 0 to {self.folds - 1}; data.val_size is not used")
            of_each = stratified_folds(train.labels, self.folds, self.split_seed)
            rows = [chosen.nonzero().flatten() for chosen in (of_each != self.fold, of_each == self.fold)]
            train, val = map(train.take, rows)
        elif val is None:
            train, val = hold_out(train, self.val_size, self.split_seed, "data.val_size")
        elif not self.val_size:
            val = val.take(torch.empty(0, dtype=torch.long))
        if self.max_train_images is not None and self.max_train_images < len(train):
            _, train = hold_out(train, self.max_train_images, self.split_seed, "data.max_train_images")
        if len(train) < self.batch_size:
            raise UserError(
                f"data.batch_size={self.batch_size} is more than the {len(train)} training images: take "
                f"data.batch_size={2 ** (len(train).bit_length() - 1)}"
            )
        self.splits = {"train": train, "val": val, "test": dataset.test}
        if stage == "fit" and this_process().is_rank_zero:  # the manifest will need it; hashing keeps one core busy
            self._hashing = Thread(target=self._hash, daemon=True)
            self._hashing.start()
        for note in self.notes:
            rank_zero_only(show)(note)
        given = self.mean, self.std
        measured: Any = channel_statistics(self.splits["train"]) if None in given else given
        mean, std = ([float(x) for x in own or found] for own, found in zip(given, measured, strict=True))
        self.spec = DataSpec(train.image_shape[-1], list(dataset.classes), mean, std)
        self.transform = BatchTransform(
            self.augmentations, image_size=self.image_size, interpolation=self.interpolation, mean=mean, std=std
        )

    def _choose_classes(self, dataset: Dataset) -> Dataset:
        """The data set with only the classes that the config names, in its order."""
        if self.classes in (None, dataset.classes) or not 2 <= len(self.classes) <= len(dataset.classes):
            return dataset
        if unknown := [name for name in self.classes if name not in dataset.classes]:
            hint = nearest(unknown[0], dataset.classes)
            raise UserError(f"data.classes: the data has no class {list_some(unknown)}{hint}")
        self.notes.append(f"classes: {', '.join(self.classes)}, {len(self.classes)} of {len(dataset.classes)}")
        labels = [dataset.classes.index(name) for name in self.classes]
        train, test = dataset.train.of_classes(labels), dataset.test.of_classes(labels)
        return Dataset(train, test, self.classes, dataset.val and dataset.val.of_classes(labels))

    def _check(self, dataset: Dataset) -> None:
        """Raise a UserError if the data does not match the config."""
        found, size = len(dataset.classes), dataset.train.image_shape[-1]
        if found < 2:
            raise UserError(f"the data has only one class, {dataset.classes[0]}: a classifier needs two or more")
        if odd := [name for name in dataset.classes if name == "???" or "${" in name]:
            raise UserError(f"a class has the name {odd[0]}, which means something else in a config: rename it")
        if self.num_classes not in (None, found):
            raise UserError(f"data.num_classes={self.num_classes}, but the data has {found} classes")
        if self.classes not in (None, dataset.classes):
            raise UserError(f"data.classes={self.classes}, but the data's classes are {dataset.classes}")
        if self.stored_size not in (None, size):
            raise UserError(f"data.stored_size={self.stored_size}, but the images have {size} pixels a side")

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Number and SHA-256 of each split's images and labels, after `setup`."""
        if self._hashing is not None:
            self._hashing.join()
        if not self._fingerprints:
            self._hash()
        return self._fingerprints

    def _hash(self) -> None:
        found = {name: {"images": len(arrays), "sha256": arrays.fingerprint()} for name, arrays in self.splits.items()}
        self._fingerprints = found

    def _training_loader(self, epoch: Callable[[], int], **placement: Any) -> ResidentLoader:
        balanced = self.sampling == "balanced"
        options = {"repeats": self.repeated_augmentation, "with_neighbour": self.mixing is not None, **placement}
        return ResidentLoader(
            self.splits["train"],
            self.batch_size,
            seed=self.seed,
            epoch=epoch,
            drop_last=True,
            balanced=balanced,
            **options,
        )

    def evaluation_loader(self, split: str, count: int | None = None) -> ResidentLoader:
        """This rank's batches of a split, without augmentation, or of `count` random images, always the same ones."""
        # A fixed random order: files are stored class by class, and a limit on the batches would leave out classes.
        arrays = self.splits[split]
        if count is not None:
            arrays = arrays.take(epoch_order(len(arrays), 0, 0)[:count])
        placement = self._placement(arrays)
        return ResidentLoader(arrays, self.eval_batch_size, seed=0, epoch=lambda: 0, drop_last=False, **placement)

    def _placement(self, arrays: ImageArrays) -> dict[str, Any]:
        trainer: Any = self.trainer
        accelerator = trainer.strategy.root_device
        device = _choose_device(arrays, accelerator)
        prefetch = device != accelerator and accelerator.type != "mps"  # which shares the host's memory
        ranks = {"rank": trainer.global_rank, "world_size": trainer.world_size}
        return {"device": device, "prefetch": prefetch, **ranks}

    def train_dataloader(self) -> ResidentLoader:
        trainer: Any = self.trainer
        if self.batch_size % trainer.world_size:
            raise UserError(
                f"data.batch_size={self.batch_size} must be a multiple of the number of devices, {trainer.world_size}"
            )
        self._train_loader = self._training_loader(
            lambda: trainer.current_epoch, **self._placement(self.splits["train"])
        )
        if self._resumed is not None:
            self._train_loader.load_state_dict(self._resumed)
        return self._train_loader

    # Lightning restores the loader's own state only if nothing has asked for the loader before, but a schedule asks
    # for it to know the number of steps.
    def state_dict(self) -> dict[str, Any]:
        assert self._train_loader is not None
        return self._train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict
        if self._train_loader is not None:  # sharded models are restored late
            self._train_loader.load_state_dict(state_dict)

    def val_dataloader(self) -> ResidentLoader:
        return self.evaluation_loader("val")

    def test_dataloader(self) -> ResidentLoader:
        return self.evaluation_loader("test")

    def on_after_batch_transfer(self, batch: StoredBatch, dataloader_idx: int) -> Batch:
        trainer: Any = self.trainer
        images, labels, indices = self.prepare_batch(batch, trainer.current_epoch if trainer.training else None)
        # Lightning has already converted the batch to a half precision, but it leaves uint8 images as they are.
        return Batch(trainer.precision_plugin.convert_input(images), labels, indices)

    def prepare_batch(self, batch: StoredBatch, epoch: int | None) -> Batch:
        """Turn a loader's batch into the model's, on its device, augmented and mixed as in `epoch`; None does neither.

        If it is to be mixed, its first image is only the neighbour of the second.
        """
        images, labels, indices, repetitions, number = batch
        transform = self.transform.to(images.device)
        if epoch is None:
            images = transform.forward(images)  # eager: evaluation has batches of several sizes
        else:
            rng = CounterRNG(self.seed, epoch, indices, repetitions)
            images = transform(images, rng.on_device(len(transform.augmentations)) if is_compiled(transform) else rng)
        if epoch is None or self.mixing is None:
            return Batch(images, labels, indices)
        module: Any = self.trainer.lightning_module if self.trainer else None  # None before training
        if self.mixing.is_on(module.progress(epoch) if module else 0.0):
            classes = self.spec.num_classes
            images, labels = self.mixing(images, labels, classes=classes, seed=self.seed, epoch=epoch, number=number)
        return Batch(images[1:], labels[1:], indices[1:])

    def first_batch(self, device: torch.device) -> Batch:
        """The first training batch of a run on a single process."""
        loader = self._training_loader(lambda: 0, device=torch.device("cpu"), rank=0, world_size=1)
        return self.prepare_batch(move_data_to_device(next(iter(loader)), device), 0)


def hold_out(arrays: ImageArrays, size: float, seed: int, key: str) -> tuple[ImageArrays, ImageArrays]:
    """What stays and what is held out, see `stratified_split`; UserError, which names `key`, if either is empty."""
    try:
        kept, held_out = stratified_split(arrays.labels, size, seed)
    except ValueError as error:
        raise UserError(f"data: {error}; change {key}") from None
    if size and not len(held_out):
        raise UserError(f"{key}={size:g} of {len(arrays)} images is less than one image: take a larger one")
    return arrays.take(kept), arrays.take(held_out)


def channel_statistics(arrays: ImageArrays) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of a split, on the scale [0, 1]."""
    histograms = torch.zeros(arrays.image_shape[0], 256, dtype=torch.float64)
    for images in arrays.chunks():
        for channel, counts in enumerate(histograms):
            counts += torch.bincount(images[:, channel].flatten(), minlength=256)
    weights = histograms / histograms.sum(dim=1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    means = (weights * values).sum(dim=1)
    stds = (weights * (values - means.unsqueeze(1)).square()).sum(dim=1).sqrt()
    return [round(mean, 4) for mean in means.tolist()], [round(std, 4) for std in stds.tolist()]


def _choose_device(arrays: ImageArrays, device: torch.device) -> torch.device:
    """The GPU if the images take at most a quarter of its free memory, else the CPU."""
    if device.type != "cuda":
        return torch.device("cpu")
    free, _ = torch.cuda.mem_get_info(device)
    if len(arrays) * arrays.image_shape.numel() <= free // 4:
        return device
    rank_zero_info("the images do not fit on the GPU next to the model; batches are gathered in host memory")
    return torch.device("cpu")
