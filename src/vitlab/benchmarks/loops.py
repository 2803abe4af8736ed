"""Bare loops in plain torch, with nothing around the step: what can be had at the most."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from vitlab.benchmarks.variant import Variant, endless, timed
from vitlab.config.compose import CONF, compose_training
from vitlab.config.instantiate import build
from vitlab.config.resolve import resolve_machine
from vitlab.data import ImageDataModule
from vitlab.data.counter_rng import CounterRNG
from vitlab.data.loader import ResidentLoader
from vitlab.data.transforms import BatchTransform
from vitlab.experiment import choose_execution

Batches = Iterator[tuple[Tensor, Tensor]]


def this_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype_of(precision: str) -> torch.dtype:
    """What matrix products are computed in under a precision of Lightning's."""
    return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision, torch.float32)


def composed(overrides: Sequence[str]) -> DictConfig:
    """The training config without `auto`, as `train.py` would have it on this machine."""
    config = compose_training([*overrides, "name=bench", "run_dir=outputs"], CONF)
    resolve_machine(config)
    return config


def settle(device: torch.device) -> None:
    """Waits until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def casting(device: torch.device, dtype: torch.dtype) -> Any:
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def augmented(data: ImageDataModule, device: torch.device, transform: BatchTransform | None = None) -> Batches:
    """Training batches as a run has them, by `data.transform` or another: images for the network, and labels."""
    arrays = data.splits["train"]
    loader = ResidentLoader(
        arrays,
        data.batch_size,
        seed=0,
        epoch=lambda: 0,
        drop_last=True,
        device=device,
        rank=0,
        world_size=1,
    )
    transform = (transform or data.transform).to(device)
    for batch in endless(loader):
        yield transform(batch.images, CounterRNG(0, 0, batch.places)), batch.labels


def one_batch(size: int, image_size: int, classes: int, device: torch.device) -> Batches:
    """The same random batch again and again."""
    images, labels = torch.randn(size, 3, image_size, image_size), torch.randint(classes, (size,))
    yield from endless([(images.to(device), labels.to(device))])


def training(
    network: nn.Module,
    batches: Batches,
    optimizer: Callable[..., torch.optim.Optimizer],
    *,
    device: torch.device,
    dtype: torch.dtype,
    label_smoothing: float = 0.0,
    clip: float | None = None,
) -> Variant:
    """Whole training steps."""
    steps_of = optimizer(network.parameters())

    def loop(steps: int) -> int:
        network.train()
        count = 0
        for _ in range(steps):
            images, labels = next(batches)
            with casting(device, dtype):
                loss = F.cross_entropy(network(images), labels, label_smoothing=label_smoothing)
            steps_of.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
            steps_of.step()
            count += len(labels)
        settle(device)
        return count

    return timed(loop)


def training_as_configured(
    config: DictConfig, network: nn.Module, batches: Batches, device: torch.device, **changes: Any
) -> Variant:
    """Training steps as a config has them: execution, precision, optimizer and loss.

    Args:
        config: As `composed` gives it.
        network: On the device.
        batches: As the network takes them.
        device: Where the steps are made.
        **changes: Arguments of the optimizer.
    """
    choose_execution(config, network)
    return training(
        network,
        batches,
        partial(build(config.optimizer, "optimizer"), **changes),
        device=device,
        dtype=dtype_of(str(config.trainer.precision)),
        label_smoothing=config.label_smoothing,
        clip=config.trainer.gradient_clip_val,
    )


def test_batches(data: ImageDataModule, size: int, device: torch.device) -> Batches:
    """The test's images and labels, again and again, so many at a time."""
    arrays = data.splits["test"]
    for row in endless(range(0, len(arrays), size)):
        images, labels = arrays.pick(slice(row, row + size)), arrays.labels[row : row + size]
        yield data.transform(images.to(device)), labels.to(device)


def evaluating(network: nn.Module, batches: Batches, *, device: torch.device, dtype: torch.dtype) -> Variant:
    """Forward passes without gradients."""

    def loop(steps: int) -> int:
        network.eval()
        count = 0
        with torch.inference_mode(), casting(device, dtype):
            for _ in range(steps):
                images, labels = next(batches)
                (network(images).argmax(dim=1) == labels).sum()
                count += len(labels)
        settle(device)
        return count

    return timed(loop)
