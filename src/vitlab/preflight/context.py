"""The context of the checks: copies of the run's objects, its first batch."""

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

# Tried in turn for float16: the first loss scale that does not overflow keeps small gradients from becoming zero.
FLOAT16_SCALES = (4096.0, 64.0, 1.0)


@dataclass
class CheckContext:
    """The run before it starts. The checks change only copies.

    Attributes:
        classifier: The run's own, with its network on the CPU.
        data: Set up.
        trainer: Not yet started.
        expected_input: The preprocessing of pretrained weights (`mean`, `std` ...); empty without such weights.
        head_is_loaded: Whether the pretrained weights include a head for these classes.
        positions: Whether the model is meant to depend on the order of the patches.
        batch: The run's first batch, ready for the model, on the device.
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
        """A copy of the classifier at its start, on the device, in the run's precision and training mode."""
        classifier = copy.deepcopy(self.classifier).to(self.device)
        classifier.network = self.trainer.precision_plugin.convert_module(classifier.network)
        classifier.train()
        if classifier.finetuning.freeze_epochs == "all":
            classifier.freeze_backbone(True)
        return classifier

    def logits(self, network: nn.Module, images: Tensor) -> Tensor:
        """The network's output in the run's precision."""
        precision = self.trainer.precision_plugin
        with precision.forward_context():
            logits: Tensor = network(precision.convert_input(images))
        return logits

    def loss(self, classifier: ImageClassifier, images: Tensor, labels: Tensor) -> Tensor:
        """The training loss in the run's precision, in nats, a scalar."""
        precision = self.trainer.precision_plugin
        with precision.forward_context():
            return classifier.training_loss(classifier.network(precision.convert_input(images)), labels)

    def gradients(self, classifier: ImageClassifier, images: Tensor, labels: Tensor) -> float:
        """Compute the parameters' gradients, and return the loss."""
        scales = FLOAT16_SCALES if str(self.trainer.precision) == "16-mixed" else (1.0,)
        for scale in scales:
            classifier.zero_grad()
            loss = self.loss(classifier, images, labels)
            (loss * scale).backward()  # type: ignore[no-untyped-call]
            for parameter in classifier.network.parameters():
                if parameter.grad is not None and scale != 1:
                    parameter.grad /= scale
            if math.isfinite(gradient_norm(classifier.network)):
                break
        return loss.item()

    def clip(self, classifier: ImageClassifier) -> None:
        """Clip the gradients as the run does."""
        value = self.trainer.gradient_clip_val
        if not value:
            return
        parameters = list(classifier.network.parameters())
        if self.trainer.gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(parameters, value)
        else:
            nn.utils.clip_grad_norm_(parameters, value)

    def plain_images(self, count: int) -> Tensor:
        """Training images without augmentation, ready for the model, evenly spaced in the split: float32
        `[count, 3, H, W]`, fewer if the split is smaller."""
        train = self.data.splits["train"]
        indices = torch.linspace(0, len(train) - 1, min(count, len(train))).long()
        transform = copy.deepcopy(self.data.transform).to(self.device)
        return transform(train.pick(indices).to(self.device)).float()


def gradient_norm(network: nn.Module) -> float:
    """The 2-norm over all parameters."""
    squares = [p.grad.float().square().sum() for p in network.parameters() if p.grad is not None]
    return math.sqrt(torch.stack(squares).sum().item()) if squares else 0.0


@contextmanager
def rng_state_restored(device: torch.device) -> Iterator[None]:
    """Restore the random number generators of torch, numpy and Python afterwards."""
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
def full_float32_precision() -> Iterator[None]:
    """Turn off TF32 in matrix products and convolutions."""
    before, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = convolutions
