"""ImageDataModule: what every source of images shares."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from lightning_fabric.utilities import move_data_to_device
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn

from vitlab.data.arrays import Dataset, ImageArrays, stratified_split
from vitlab.data.counter_rng import CounterRNG
from vitlab.data.loader import ResidentLoader, StoredBatch
from vitlab.data.mixing import Mixing
from vitlab.data.transforms import BatchTransform
from vitlab.errors import UserError


class Batch(NamedTuple):
    """Float32 images `[B, 3, H, W]`, labels int64 `[B]`, or float32 `[B, classes]` where images were mixed, and the
    images' places in their split, int64 `[B]`."""

    images: Tensor
    labels: Tensor
    places: Tensor


@dataclass(frozen=True)
class DataSpec:
    """What a loaded data set knows about itself, also where the config left it open.

    Attributes:
        stored_size: Side of the images in memory, in pixels.
        classes: Their names, by label.
        mean, std: Of each channel on the scale [0, 1], as the images are normalised.
    """

    stored_size: int
    classes: list[str]
    mean: list[float]
    std: list[float]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def as_config(self) -> dict[str, Any]:
        """The same as keys of the config's `data` group."""
        return {**asdict(self), "num_classes": self.num_classes}


class ImageDataModule(LightningDataModule):
    """Loads a data set into memory, splits it, and serves batches that are augmented on the device.

    A source is a subclass with `load`, and with `fetch` where there is something to bring here first. The test images
    are never trained or selected on. What a config leaves null of `stored_size`, `num_classes`, `classes`, `mean` and
    `std` is known after `setup`: see `spec`.

    Args:
        image_size: Side of the images given to the network, in pixels.
        stored_size: Side of the images in memory, in pixels; None takes it from the data.
        num_classes, classes: Number and names of the classes; None takes them from the data.
        mean, std: Of each channel on the scale [0, 1]; None measures them on the training images.
        interpolation: Of the resize from `stored_size` to `image_size`: "bilinear" or "bicubic".
        augmentations: Modules called as `(images, draws, stream)` on training batches, and at most one `Mixing`.
        val_size: Validation images drawn from the training images, stratified: a number, a fraction below 1, or 0.
        split_seed: The validation split depends on this alone.
        max_train_images: Train on this many images only (a stratified choice); None means all.
        repeated_augmentation: An epoch of as many images consists of so many repetitions of each of fewer ones
            (Hoffer et al. 2020, "Augment Your Batch"), every one with draws of its own.
        batch_size: Global training batch, divided among the ranks.
        eval_batch_size: Global batch of validation, test and prediction.
        seed: Of the order of images and their augmentation.

    Raises:
        UserError: on `setup`, where the data does not fit what is asked of it.
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
        augmentations: Sequence[nn.Module],
        val_size: float,
        split_seed: int,
        max_train_images: int | None,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        repeated_augmentation: int = 1,
    ) -> None:
        super().__init__()
        if repeated_augmentation < 1:
            raise ValueError(f"repeated_augmentation={repeated_augmentation} must be at least 1")
        if batch_size < 1 or eval_batch_size < 1:
            raise ValueError(f"batch_size={batch_size} and eval_batch_size={eval_batch_size} must be at least 1")
        self.image_size = image_size
        self.stored_size = stored_size
        self.num_classes = num_classes
        self.classes = None if classes is None else list(classes)
        self.mean = mean
        self.std = std
        self.interpolation = interpolation
        self.augmentations = [module for module in augmentations if not isinstance(module, Mixing)]
        self.mixing = next((m for m in augmentations if isinstance(m, Mixing) and m.p), None)
        self.val_size = val_size
        self.split_seed = split_seed
        self.max_train_images = max_train_images
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.repeated_augmentation = repeated_augmentation
        self.splits: dict[str, ImageArrays] = {}
        self._train_loader: ResidentLoader | None = None
        self._resumed: dict[str, int] | None = None

    def fetch(self) -> None:
        """Brings the data to this machine (download, decode), where a source has to."""

    def load(self) -> Dataset:
        """The data set in memory."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        if not self.splits:
            self.fetch()

    def setup(self, stage: str | None = None) -> None:
        if self.splits:
            return
        dataset = self.load()
        self._check(dataset)
        train = dataset.train
        try:
            kept, val = stratified_split(train.labels, self.val_size, self.split_seed)
            if self.max_train_images is not None and self.max_train_images < len(kept):
                chosen = stratified_split(train.labels[kept], self.max_train_images, self.split_seed)[1]
                kept = kept[chosen]
        except ValueError as error:
            raise UserError(f"data: {error}; change data.val_size or data.max_train_images") from None
        if len(kept) < self.batch_size:
            raise UserError(
                f"data.batch_size={self.batch_size} is more than the {len(kept)} training images: no batch is full"
            )
        self.splits = {"train": train.take(kept), "val": train.take(val), "test": dataset.test}
        self._describe(dataset)
        self.transform = BatchTransform(
            self.augmentations,
            image_size=self.image_size,
            interpolation=self.interpolation,
            mean=self.spec.mean,
            std=self.spec.std,
        )

    def _check(self, dataset: Dataset) -> None:
        found = len(dataset.classes)
        if self.num_classes is not None and self.num_classes != found:
            raise UserError(f"data.num_classes={self.num_classes}, but the data has {found} classes")
        if self.classes is not None and self.classes != dataset.classes:
            raise UserError(f"data.classes={self.classes}, but the data's classes are {dataset.classes}")
        size = dataset.train.image_shape[-1]
        if self.stored_size is not None and self.stored_size != size:
            raise UserError(f"data.stored_size={self.stored_size}, but the images have {size} pixels a side")

    def _describe(self, dataset: Dataset) -> None:
        mean, std = self.mean, self.std
        if mean is None or std is None:
            measured_mean, measured_std = channel_statistics(self.splits["train"])
            mean, std = mean or measured_mean, std or measured_std
        self.spec = DataSpec(
            stored_size=dataset.train.image_shape[-1],
            classes=list(dataset.classes),
            mean=[float(m) for m in mean],
            std=[float(s) for s in std],
        )

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Number and SHA-256 of each split's images and labels, after `setup`."""
        return {name: {"images": len(split), "sha256": split.fingerprint()} for name, split in self.splits.items()}

    def _loader(self, split: str, *, training: bool) -> ResidentLoader:
        trainer = self.trainer
        assert trainer is not None
        batch_size = self.batch_size if training else self.eval_batch_size
        if training and batch_size % trainer.world_size:
            raise UserError(f"data.batch_size={batch_size} does not divide among {trainer.world_size} devices")
        arrays = self.splits[split]
        # Evaluation has one fixed order, and a mixed one: files come class by class, and a limit on the batches would
        # else count the first classes alone.
        return ResidentLoader(
            arrays,
            batch_size,
            seed=self.seed if training else 0,
            epoch=lambda: trainer.current_epoch if training else 0,
            drop_last=training,
            device=_home(arrays, trainer.strategy.root_device),
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            **(self._training_batches if training else {}),
        )

    @property
    def _training_batches(self) -> dict[str, Any]:
        return {"repeats": self.repeated_augmentation, "with_neighbour": self.mixing is not None}

    def train_dataloader(self) -> ResidentLoader:
        self._train_loader = self._loader("train", training=True)
        if self._resumed is not None:
            self._train_loader.load_state_dict(self._resumed)
        return self._train_loader

    # Lightning brings back the loader's own state only where nothing asked for the loader before, as a schedule does
    # that must know the number of steps.
    def state_dict(self) -> dict[str, Any]:
        assert self._train_loader is not None
        return self._train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict
        if self._train_loader is not None:  # sharded models are restored late
            self._train_loader.load_state_dict(state_dict)

    def val_dataloader(self) -> ResidentLoader:
        return self._loader("val", training=False)

    def test_dataloader(self) -> ResidentLoader:
        return self._loader("test", training=False)

    def on_after_batch_transfer(self, batch: StoredBatch, dataloader_idx: int) -> Batch:
        trainer = self.trainer
        assert trainer is not None
        epoch = trainer.current_epoch if trainer.training else None
        images, labels, places = self.prepare_batch(batch, epoch)
        # Lightning converts batches to a half precision before they come here: as uint8, which stay what they are.
        return Batch(trainer.precision_plugin.convert_input(images), labels, places)

    def prepare_batch(self, batch: StoredBatch, epoch: int | None) -> Batch:
        """What the network gets of a loader's batch, on the batch's device.

        Args:
            batch: Where there is mixing, and the batch is to be augmented, its first image is there for its neighbour's
                sake alone.
            epoch: Augments as in this epoch; None does not augment.
        """
        images, labels, places, repetitions, number = batch
        draws = None if epoch is None else CounterRNG(self.seed, epoch, places, repetitions)
        images = self.transform.to(images.device)(images, draws)
        if epoch is None or self.mixing is None:
            return Batch(images, labels, places)
        if self.mixing.is_on(self._progress(epoch)):
            classes = self.spec.num_classes
            images, labels = self.mixing(images, labels, classes=classes, seed=self.seed, epoch=epoch, number=number)
        return Batch(images[1:], labels[1:], places[1:])

    def _progress(self, epoch: int) -> float:
        module: Any = self.trainer.lightning_module if self.trainer else None
        return module.progress(epoch) if module else 0.0  # before training

    def first_batch(self, device: torch.device) -> Batch:
        """What one process trains on first."""
        loader = ResidentLoader(
            self.splits["train"],
            self.batch_size,
            seed=self.seed,
            epoch=lambda: 0,
            drop_last=True,
            device=torch.device("cpu"),
            rank=0,
            world_size=1,
            **self._training_batches,
        )
        stored = next(iter(loader))
        return self.prepare_batch(move_data_to_device(stored, device), 0)


def channel_statistics(arrays: ImageArrays) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of a split, on the scale [0, 1]."""
    histograms = torch.zeros(arrays.image_shape[0], 256, dtype=torch.float64)
    for images in arrays.chunks():
        for channel, counts in enumerate(histograms):
            counts += torch.bincount(images[:, channel].flatten(), minlength=256)
    means, stds = [], []
    for counts in histograms:
        values = torch.arange(256, dtype=torch.float64) / 255
        mean = (counts * values).sum() / counts.sum()
        means.append(round(mean.item(), 4))
        stds.append(round((((values - mean) ** 2 * counts).sum() / counts.sum()).sqrt().item(), 4))
    return means, stds


def _home(arrays: ImageArrays, device: torch.device) -> torch.device:
    """The device itself where the images take at most a quarter of its free memory, else the host's memory."""
    if device.type != "cuda":
        return torch.device("cpu")
    free, _ = torch.cuda.mem_get_info(device)
    if len(arrays) * arrays.image_shape.numel() <= free // 4:
        return device
    rank_zero_info("the images do not fit beside the model on the GPU: batches are gathered in host memory")
    return torch.device("cpu")
