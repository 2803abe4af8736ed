"""The context and the results of the checks."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from statistics import median_high
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import Precision
from pytorch_lightning.utilities import GradClipAlgorithmType
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vitlab.classifier import ImageClassifier
from vitlab.data import Batch, ImageDataModule, main_class

IMAGES = 8  # of the batch to overfit
STEPS = 6
RAMP = 3  # steps to the full learning rate
# With vitlab's optimizers and models, a step changes a weight matrix by up to 0.05 of its norm; AdamW at 100 times its
# learning rate changes it by 2 to 5.
LARGEST_UPDATE = 0.5
# Learning rates of AdamW. At the first, sound models learn 8 images (vit_scratch, vit_base, ResNet-18 and small timm
# models: the loss falls to 0.5 to 0.9 of the initial one); the others are for models with another scale.
SAFE_RATES = (5e-4, 5e-3, 5e-5)
LEARNED = 0.93  # of the initial loss
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
    """Result of one check."""

    status: Status
    figure: str  # the measurement, in words and with units
    meaning: str = ""  # of warnings and failures: what is wrong, its usual causes, and what would work
    check: str = ""  # its name, filled in by the runner


ok = partial(CheckResult, Status.OK)
warning = partial(CheckResult, Status.WARNING)
failed = partial(CheckResult, Status.FAILED)
skipped = partial(CheckResult, Status.SKIPPED)


@dataclass
class Trial:
    """A copy of the classifier that is trained for a few steps on a few images."""

    classifier: ImageClassifier
    optimizer: Optimizer
    losses: list[float] = field(default_factory=list)  # before each step and after the last, in nats
    reached: set[str] = field(default_factory=set)  # names of parameters that had a gradient other than zero
    broken: set[str] = field(default_factory=set)  # names of parameters that had a NaN or infinite gradient
    norms: tuple[float, float] = (0.0, 0.0)  # of the first gradient, before and after clipping
    update: float = 0.0  # median over matrices of |change| / |weights| in a step at the full learning rate
    seconds_per_image: float = 0.0

    @property
    def learned(self) -> bool:
        return bool(self.losses) and min(self.losses) <= LEARNED * self.losses[0]

    @property
    def is_sound(self) -> bool:
        """Whether it learned, and to the end, without gradients or steps that are too large."""
        is_stable = not self.broken and self.update <= LARGEST_UPDATE
        return is_stable and self.learned and self.losses[-1] <= LEARNED * self.losses[0]

    def train(self, context: "CheckContext", labels: Tensor, clip: Callable[[Optimizer], None]) -> None:
        """Train on the first images of the batch, with a linear ramp of the learning rates."""
        started = time.perf_counter()
        network, images, labels = self.classifier.network, context.batch.images[:IMAGES], labels[:IMAGES]
        matrices = [p for p in network.parameters() if p.requires_grad and p.dim() > 1]
        before = [p.detach().float().clone() for p in matrices]
        ramp = LambdaLR(self.optimizer, lambda step: min(1, (step + 1) / RAMP))
        for step in range(STEPS):
            self.losses.append(context.gradients(self.classifier, images, labels))
            sizes = {name: p.grad.abs().sum().item() for name, p in network.named_parameters() if p.grad is not None}
            self.broken |= {name for name, size in sizes.items() if not math.isfinite(size)}
            self.reached |= {name for name, size in sizes.items() if size > 0 and math.isfinite(size)}
            norm = gradient_norm(network)
            clip(self.optimizer)
            if step == 0:
                self.norms = norm, gradient_norm(network)
            self.optimizer.step()
            if step == 0:
                pairs = zip(before, (p.detach().float() for p in matrices), strict=True)
                # Matrices that start at zero do not count.
                changes = [((new - old).norm() / old.norm()).item() for old, new in pairs if old.norm() > 0]
                self.update = RAMP * median_high(changes or [0.0])
            ramp.step()
        with torch.no_grad():
            self.losses.append(context.loss(self.classifier, images, labels).item())
        self.seconds_per_image = (time.perf_counter() - started) / (STEPS * IMAGES)


@dataclass
class CheckContext:
    """The run before it starts. The checks change only copies."""

    classifier: ImageClassifier  # the run's own, with its network on the CPU
    data: ImageDataModule  # set up
    trainer: pl.Trainer  # not yet started
    expected_input: dict[str, Any]  # preprocessing of pretrained weights (`mean`, `std` ...); empty without them
    head_is_loaded: bool  # whether the pretrained weights include a head for these classes
    positions: bool  # whether the model is meant to depend on the order of the patches
    batch: Batch  # the run's first, ready for the model, on the device
    times_steps: bool = True  # False leaves that to the training itself
    recipe: Trial = field(init=False)  # trained on a few images with the run's optimizer
    trial: Trial = field(init=False)  # the same, if it is sound; else trained with a safe optimizer
    network: nn.Module = field(init=False)  # of `trial`, in float32 and eval mode: a head of zeros would hide the rest
    started: float = field(default_factory=time.perf_counter)  # when the run began

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

    def clip(self, optimizer: Optimizer) -> None:
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

    def train_by_recipe(self) -> None:
        """Train `recipe` on a few images, with the run's optimizer and clipping."""
        classifier = self.copy()
        recipe = Trial(classifier, classifier.make_optimizer())
        recipe.train(self, self.batch.labels, self.clip)
        self.recipe = recipe  # not before: the training may raise an error

    def train_on_one_batch(self) -> None:
        """Set `trial`: if the run's recipe does not learn a few images, train with an optimizer that is safe for any
        model, to tell a faulty model from a faulty recipe.

        A mixed image is then trained on its main class: half of each of two classes is no better than chance.
        """
        recipe = getattr(self, "recipe", None)
        if recipe and recipe.is_sound:
            self.trial = recipe
            return
        tried = []
        for rate in SAFE_RATES:
            torch.manual_seed(0)
            classifier = self.copy()
            trial = Trial(classifier, torch.optim.AdamW(classifier.network.parameters(), lr=rate, weight_decay=0.0))
            if any(p.requires_grad for p in classifier.network.parameters()):
                trial.train(self, main_class(self.batch.labels), partial(Precision().clip_grad_by_norm, clip_val=1.0))
            tried.append(trial)
            if trial.learned:
                break
        self.trial = trial if trial.learned else tried[0]

    def keep_trained_network(self) -> CheckResult | None:
        """Set `network`, unless its weights are now NaN."""
        if self.trial.broken:
            return skipped("not checked, because its gradients are NaN or infinite")
        self.network = copy.deepcopy(self.trial.classifier.network.eval()).float()
        return None


def gradient_norm(network: nn.Module) -> float:
    """The 2-norm over all parameters."""
    gradients = [p.grad.float() for p in network.parameters() if p.grad is not None]
    return nn.utils.get_total_norm(gradients).item()
