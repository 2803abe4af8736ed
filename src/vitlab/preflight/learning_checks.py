"""Checks that model and recipe can learn, on copies that are thrown away."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median_high

import torch
from pytorch_lightning.plugins import Precision
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vitlab.classifier import ImageClassifier
from vitlab.data import main_class
from vitlab.preflight.context import CheckContext, CheckResult, failed, gradient_norm, list_some, ok, warning

IMAGES = 8  # of the batch to overfit
STEPS = 6
# Learning rates of AdamW. At the first, sound models learn 8 images (vit_scratch, vit_base, ResNet-18 and small timm
# models: the loss falls to 0.5 to 0.9 of the initial one); the others are for models with another scale.
SAFE_RATES = (5e-4, 5e-3, 5e-5)
LEARNED = 0.93  # of the initial loss
FAR_FROM_CHANCE = 2.5  # nats; untrained models with batch norm may start 2 above ln(classes)
RAMP = 3  # steps to the full learning rate
# With vitlab's optimizers and models, a step changes a weight matrix by up to 0.05 of its norm; AdamW at 100 times its
# learning rate changes it by 2 to 5.
LARGEST_UPDATE = 0.5
LAYERS = (
    *(nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
)
ADVICE = {
    "plain tensor": "it is not trained, moved to the device or saved in checkpoints. Use nn.Parameter if it should "
    "learn, register_buffer if not",
    "frozen layers": "finetune trains all parameters, but these have requires_grad=False. Usual causes: a forgotten "
    "requires_grad_(False), layers created under torch.no_grad. To train only the head, set finetune=head_only",
    "frozen": "right for fixed position embeddings, wrong for learned ones",
    "high loss": "the untrained model is confident of wrong predictions. Usual causes: weights or embeddings "
    "initialised too large, a missing norm, logits multiplied by a temperature, a pretrained head with another order "
    "of classes",
    "low loss": "an untrained head cannot be better than chance. Usual causes: the label is part of the input, a loss "
    "that is not the cross-entropy of these labels",
    "not learned": f"a model that cannot learn {IMAGES} images cannot learn a data set. Usual causes: detach, no_grad "
    "or .data cuts the gradient, probabilities instead of logits, an input that does not reach the head, NaN",
    "broken gradient": "the first step would destroy the weights. Usual causes: a division by zero, a logarithm or "
    "root of zero, float16 overflow",
    "no gradient": "these parameters never change. Usual causes: a layer that forward does not use, detach() or "
    "torch.no_grad(), an activation that is always zero",
    "groups": "every trainable parameter must be in exactly one parameter group",
    "clipped away": "the clipped gradient is too small to learn from. Usual values: trainer.gradient_clip_val=1.0 with "
    "trainer.gradient_clip_algorithm=norm; null turns clipping off",
    "high rate": "the learning rate is too high: {reason}. Usual values: 1e-3 to 3e-4 for Adam and AdamW from scratch, "
    "1e-4 to 3e-5 for fine-tuning, 0.01 to 0.1 for SGD",
    "loss does not fall": "the loss does not fall at the full learning rate; a warm-up may still help",
}


@dataclass
class Trial:
    """A copy of the classifier that is trained for a few steps on a few images.

    Attributes:
        losses: Before each step and after the last, in nats.
        reached, broken: Names of the parameters that had a nonzero, or a NaN or infinite, gradient in some step.
        norms: Of the first gradient, before and after clipping.
        update: Median over the weight matrices of |change| / |weights| in a step at the full learning rate.
        seconds_per_image: Training time.
    """

    classifier: ImageClassifier
    optimizer: Optimizer
    losses: list[float] = field(default_factory=list)
    reached: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    norms: tuple[float, float] = (0.0, 0.0)
    update: float = 0.0
    seconds_per_image: float = 0.0

    @property
    def learned(self) -> bool:
        return min(self.losses) <= LEARNED * self.losses[0]

    def train(self, context: CheckContext, labels: Tensor, clip: Callable[[Optimizer], None]) -> None:
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


def trainable_parameters(context: CheckContext) -> CheckResult:
    """Exactly the parameters that `finetune` freezes are frozen."""
    network = context.classifier.network
    parameters = dict(network.named_parameters())
    learning = sum(p.numel() for p in parameters.values() if p.requires_grad)
    figure = f"{learning:,} of {sum(p.numel() for p in parameters.values()):,} parameters"
    plain_tensors = [
        f"{name}.{key}".removeprefix(".")
        for name, module in network.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 1
    ]
    if plain_tensors:
        return failed(f"{figure}; {list_some(plain_tensors)} is a plain tensor", ADVICE["plain tensor"])
    if context.classifier.finetuning.freeze_epochs == "all":
        return ok(f"{figure}: only the head, as set by finetune")
    frozen = [name for name, p in parameters.items() if not p.requires_grad]
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, LAYERS)]
    of_layers = {key for name, module in layers for key, _ in module.named_parameters(name, recurse=False)}
    frozen_layers = [name for name in frozen if name in of_layers]
    if frozen_layers:
        return failed(f"{figure}; frozen: {list_some(frozen_layers)}", ADVICE["frozen layers"])
    if frozen:
        return warning(f"{figure}; frozen: {list_some(frozen)}", ADVICE["frozen"])
    return ok(figure)


def initial_loss(context: CheckContext) -> CheckResult:
    """The loss starts near that of chance, ln(classes)."""
    chance = math.log(context.num_classes)
    images, labels = context.batch.images[: 2 * IMAGES], context.batch.labels[: 2 * IMAGES]
    with torch.no_grad():
        loss = context.loss(context.copy(), images, labels).item()
    figure = f"{loss:.3f}; chance among {context.num_classes} classes is ln {context.num_classes} = {chance:.3f}"
    if not loss < chance + 0.7:  # also if it is NaN
        find = warning if loss < chance + FAR_FROM_CHANCE else failed
        return find(figure, ADVICE["high loss"])
    if loss < chance - 0.7 and not context.head_is_loaded:
        return failed(figure, ADVICE["low loss"])
    return ok(figure)


def overfit(context: CheckContext) -> Trial:
    """Train a copy on a few images with an optimizer that is safe for any model, whatever the run's own.

    A mixed image is trained on its main class: half of each of two classes is no better than chance.
    """
    tried = []
    for rate in SAFE_RATES:
        torch.manual_seed(0)
        classifier = context.copy()
        trial = Trial(classifier, torch.optim.AdamW(classifier.network.parameters(), lr=rate, weight_decay=0.0))
        tried.append(trial)
        if not any(p.requires_grad for p in classifier.network.parameters()):
            break
        trial.train(context, main_class(context.batch.labels), partial(Precision().clip_grad_by_norm, clip_val=1.0))
        if trial.learned:
            return trial
    return tried[0]


def overfits_one_batch(context: CheckContext, trial: Trial) -> CheckResult:
    """The loss of a few images falls."""
    losses = trial.losses
    if not losses:
        return failed("no parameter is trainable", "see 'trainable parameters'")
    figure = f"loss {losses[0]:.3f} -> {min(losses):.3f} in {STEPS} steps on {IMAGES} images (AdamW on a copy)"
    return ok(figure) if trial.learned else failed(figure, ADVICE["not learned"])


def gradients(context: CheckContext, trial: Trial) -> CheckResult:
    """Every trainable parameter gets a finite, nonzero gradient."""
    names = [name for name, p in trial.classifier.network.named_parameters() if p.requires_grad]
    unreached = [name for name in names if name not in trial.reached]
    if trial.broken:
        some = list_some(sorted(trial.broken))
        figure = f"NaN or infinite in {len(trial.broken)} of {len(names)} parameters: {some}"
        return failed(figure, ADVICE["broken gradient"])
    if unreached:
        figure = f"zero or missing for {len(unreached)} of {len(names)} parameters: {list_some(unreached)}"
        return failed(figure, ADVICE["no gradient"])
    return ok(f"finite and nonzero for all {len(names)} trainable parameters")


def optimizer_groups(context: CheckContext, trial: Trial) -> CheckResult:
    """Every trainable parameter is in exactly one parameter group of the optimizer."""
    groups = trial.optimizer.param_groups
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    learning = {name: id(p) for name, p in trial.classifier.network.named_parameters() if p.requires_grad}
    missing = [name for name, key in learning.items() if key not in grouped]
    twice = [name for name, key in learning.items() if grouped.count(key) > 1]
    figure = f"{type(trial.optimizer).__name__}, {len(learning)} parameters in {len(groups)} groups"
    if missing:
        return failed(f"{figure}; {list_some(missing)} in none", ADVICE["groups"])
    if twice:
        return failed(f"{figure}; {list_some(twice)} in several", ADVICE["groups"])
    return ok(figure)


def clipping(context: CheckContext, trial: Trial) -> CheckResult:
    """Gradient clipping leaves enough of the gradient."""
    value, (norm, left) = context.trainer.gradient_clip_val, trial.norms
    if not value:
        return ok(f"none; the first gradient's norm is {norm:.3g}")
    figure = f"gradient_clip_val={value:g} reduces the first gradient's norm from {norm:.3g} to {left:.3g}"
    return failed(figure, ADVICE["clipped away"]) if left < 1e-3 * norm else ok(figure)


def learning_rate(context: CheckContext, trial: Trial) -> CheckResult:
    """A few steps at the full learning rate do not make the loss explode."""
    losses, rate = trial.losses, max(group["lr"] for group in trial.optimizer.param_groups)
    figure = (
        f"optimizer.lr={rate:g}: a step changes a weight matrix by {trial.update:.2g} of its norm; "
        f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {STEPS} steps"
    )
    exploded = not all(map(math.isfinite, losses)) or max(losses) > losses[0] + 3 * math.log(context.num_classes)
    if exploded or trial.update > LARGEST_UPDATE:
        reason = "the loss explodes" if exploded else "each step undoes the last one"
        return failed(figure, ADVICE["high rate"].format(reason=reason))
    if min(losses[1:]) >= losses[0]:
        return warning(figure, ADVICE["loss does not fall"])
    return ok(figure)
