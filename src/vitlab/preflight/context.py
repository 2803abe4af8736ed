"""The context and the results of the checks."""

import copy
import math
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import Precision
from pytorch_lightning.utilities import GradClipAlgorithmType
from torch import Tensor, nn

from vitlab.classifier import ImageClassifier
from vitlab.data import Batch, ImageDataModule

# Tried in turn for float16: the first loss scale that does not overflow keeps small gradients from becoming zero.
FLOAT16_SCALES = (4096.0, 64.0, 1.0)


class Status(StrEnum):
    """`FAILED` stops a run with preflight=strict; `WARNING` never does; `SKIPPED` means the check could not run."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class CheckResult:
    """Result of one check.

    Attributes:
        figure: The measurement, in words and with units.
        meaning: For warnings and failures: what is wrong, its usual causes, and what would work.
        check: Name of the check; filled in by the runner.
    """

    status: Status
    figure: str
    meaning: str = ""
    check: str = ""


ok = partial(CheckResult, Status.OK)
warning = partial(CheckResult, Status.WARNING)
failed = partial(CheckResult, Status.FAILED)
skipped = partial(CheckResult, Status.SKIPPED)


def list_some(names: list[str], count: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


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
        with self.trainer.precision_plugin.forward_context():
            return classifier.training_loss(self.logits(classifier.network, images), labels)

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

    def clip(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients as the run does."""
        algorithm = GradClipAlgorithmType(self.trainer.gradient_clip_algorithm or "norm")
        Precision().clip_gradients(optimizer, self.trainer.gradient_clip_val or 0, algorithm)

    def plain_images(self, count: int) -> Tensor:
        """Training images without augmentation, ready for the model, evenly spaced in the split: float32
        `[count, 3, H, W]`, fewer if the split is smaller."""
        train = self.data.splits["train"]
        indices = torch.linspace(0, len(train) - 1, min(count, len(train))).long()
        transform = copy.deepcopy(self.data.transform).to(self.device)
        return transform(train.pick(indices).to(self.device)).float()


def gradient_norm(network: nn.Module) -> float:
    """The 2-norm over all parameters."""
    gradients = [p.grad.float() for p in network.parameters() if p.grad is not None]
    return nn.utils.get_total_norm(gradients).item()
