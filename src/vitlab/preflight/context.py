"""What is checked: copies of the run's objects, and one of its batches."""

import copy
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from vitlab.classifier import ImageClassifier
from vitlab.data import Batch, ImageDataModule

# Of the loss, against gradients too small for float16: the first that does not overflow.
FLOAT16_SCALES = (4096.0, 64.0, 1.0)


@dataclass
class CheckContext:
    """The run as the checks see it; they change copies alone.

    Attributes:
        classifier: The run's own, with its network on the CPU.
        data: Set up.
        trainer: Not yet started.
        expected_input: What pretrained weights say of their images (`mean`, `std` ...); empty without.
        head_is_loaded: The pretrained weights brought a head for these classes.
        positions: Whether the network is meant to tell the order of patches.
        batch: The first batch of the run, as the network gets it, on the device.
    """

    classifier: ImageClassifier
    data: ImageDataModule
    trainer: pl.Trainer
    expected_input: dict[str, Any]
    head_is_loaded: bool
    positions: bool
    batch: Batch

    @property
    def device(self) -> torch.device:
        return self.trainer.strategy.root_device

    @property
    def num_classes(self) -> int:
        return int(self.data.spec.num_classes)

    def copy(self) -> ImageClassifier:
        """The classifier as it starts, on the device, in the precision and the mode that it trains in."""
        twin = copy.deepcopy(self.classifier).to(self.device)
        twin.network = self.trainer.precision_plugin.convert_module(twin.network)
        twin.train()
        if twin.finetuning.freeze_epochs == "all":
            twin.freeze_backbone(True)
        return twin

    def logits(self, network: nn.Module, images: Tensor) -> Tensor:
        """In the run's precision."""
        precision = self.trainer.precision_plugin
        with precision.forward_context():
            logits: Tensor = network(precision.convert_input(images))
        return logits

    def loss(self, twin: ImageClassifier, images: Tensor, labels: Tensor) -> Tensor:
        """The training loss in the run's precision, in nats, a scalar."""
        precision = self.trainer.precision_plugin
        with precision.forward_context():
            return twin.training_loss(twin.network(precision.convert_input(images)), labels)

    def gradients(self, twin: ImageClassifier, images: Tensor, labels: Tensor) -> float:
        """Leaves gradients in the parameters; returns the loss."""
        scales = FLOAT16_SCALES if str(self.trainer.precision) == "16-mixed" else (1.0,)
        for scale in scales:
            twin.zero_grad()
            loss = self.loss(twin, images, labels)
            (loss * scale).backward()  # type: ignore[no-untyped-call]
            for parameter in twin.network.parameters():
                if parameter.grad is not None and scale != 1:
                    parameter.grad /= scale
            if math.isfinite(gradient_norm(twin.network)):
                break
        return loss.item()

    def clip(self, twin: ImageClassifier) -> None:
        """Clips the gradients as the run does."""
        value = self.trainer.gradient_clip_val
        if not value:
            return
        parameters = list(twin.network.parameters())
        if self.trainer.gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(parameters, value)
        else:
            nn.utils.clip_grad_norm_(parameters, value)

    def plain_images(self, count: int) -> Tensor:
        """Training images without augmentation, as the network gets them, float32 `[count, 3, H, W]`, spread over the
        split."""
        train = self.data.splits["train"]
        index = torch.linspace(0, len(train) - 1, min(count, len(train))).long()
        transform = copy.deepcopy(self.data.transform).to(self.device)
        images: Tensor = transform(train.pick(index).to(self.device))
        return images


def gradient_norm(network: nn.Module) -> float:
    """Over all parameters."""
    squares = [p.grad.float().square().sum() for p in network.parameters() if p.grad is not None]
    return math.sqrt(torch.stack(squares).sum().item()) if squares else 0.0


@contextmanager
def chance_untouched(device: torch.device) -> Iterator[None]:
    """Gives the random numbers back as they were: torch's, numpy's and Python's."""
    state, numpy_state = random.getstate(), np.random.get_state()
    mps_state = torch.mps.get_rng_state() if device.type == "mps" else None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)
            if mps_state is not None:
                torch.mps.set_rng_state(mps_state)


@contextmanager
def exact_products() -> Iterator[None]:
    """Float32 matrix products and convolutions in all of float32's digits, not in TF32."""
    before, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = convolutions
