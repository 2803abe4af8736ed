"""Checks that model and recipe can learn, on copies that are thrown away."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from vitlab.classifier import ImageClassifier
from vitlab.data import main_class
from vitlab.preflight.check_result import CheckResult, failed, list_some, ok, warning
from vitlab.preflight.context import CheckContext, gradient_norm

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


@dataclass
class Trial:
    """A copy that was trained for a few steps on a few images.

    Attributes:
        classifier: The copy.
        losses: Before each step and after the last, in nats.
        reached: Names of the parameters that had a nonzero gradient in some step.
        broken: Names of the parameters that had a NaN or infinite gradient.
    """

    classifier: ImageClassifier
    losses: list[float] = field(default_factory=list)
    reached: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)

    @property
    def learned(self) -> bool:
        return min(self.losses) <= LEARNED * self.losses[0]


def trainable_parameters(context: CheckContext) -> CheckResult:
    """Exactly the parameters that `finetune` freezes are frozen."""
    network = context.classifier.network
    parameters = dict(network.named_parameters())
    learning = sum(p.numel() for p in parameters.values() if p.requires_grad)
    figure = f"{learning:,} of {sum(p.numel() for p in parameters.values()):,} parameters"
    plain_tensors = [
        _join(name, key)
        for name, module in network.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 1
    ]
    if plain_tensors:
        return failed(
            f"{figure}; {list_some(plain_tensors)} is a plain tensor",
            "it is not trained, moved to the device or saved in checkpoints. Use nn.Parameter if it should learn, "
            "register_buffer if not",
        )
    if context.classifier.finetuning.freeze_epochs == "all":
        return ok(f"{figure}: only the head, as set by finetune")
    frozen = [name for name, p in parameters.items() if not p.requires_grad]
    modules = [(name, module) for name, module in network.named_modules() if isinstance(module, LAYERS)]
    of_layers = {_join(name, key) for name, module in modules for key, _ in module.named_parameters(recurse=False)}
    frozen_layers = [name for name in frozen if name in of_layers]
    if frozen_layers:
        return failed(
            f"{figure}; frozen: {list_some(frozen_layers)}",
            "finetune trains all parameters, but these have requires_grad=False. Usual causes: a forgotten "
            "requires_grad_(False), layers created under torch.no_grad. To train only the head, set finetune=head_only",
        )
    if frozen:
        return warning(
            f"{figure}; frozen: {list_some(frozen)}", "right for fixed position embeddings, wrong for learned ones"
        )
    return ok(figure)


def initial_loss(context: CheckContext) -> CheckResult:
    """The loss starts near that of chance, ln(classes)."""
    chance = math.log(context.num_classes)
    images, labels = context.batch.images[: 2 * IMAGES], context.batch.labels[: 2 * IMAGES]
    with torch.no_grad():
        loss = context.loss(context.copy(), images, labels).item()
    figure = f"{loss:.3f}; chance among {context.num_classes} classes is ln {context.num_classes} = {chance:.3f}"
    if not loss < chance + 0.7:
        find = warning if loss < chance + FAR_FROM_CHANCE else failed
        return find(
            figure,
            "the untrained model is confident of wrong predictions. Usual causes: weights or embeddings initialised "
            "too large, a missing norm, logits multiplied by a temperature, a pretrained head with another order of "
            "classes",
        )
    if loss < chance - 0.7 and not context.head_is_loaded:
        return failed(
            figure,
            "an untrained head cannot be better than chance. Usual causes: the label is part of the input, a loss that "
            "is not the cross-entropy of these labels",
        )
    return ok(figure)


def overfit(context: CheckContext) -> Trial:
    """Train a copy on a few images with an optimizer that is safe for any model, whatever the run's own.

    A mixed image is trained on its main class: half of each of two classes is no better than chance.
    """
    tried = []
    for rate in SAFE_RATES:
        torch.manual_seed(0)
        trial = Trial(context.copy())
        learning = [p for p in trial.classifier.network.parameters() if p.requires_grad]
        if not learning:
            return trial
        _train(context, trial, torch.optim.AdamW(learning, lr=rate, weight_decay=0.0))
        if trial.learned:
            return trial
        tried.append(trial)
    return tried[0]


def _train(context: CheckContext, trial: Trial, optimizer: torch.optim.Optimizer) -> None:
    images, labels = context.batch.images[:IMAGES], main_class(context.batch.labels[:IMAGES])
    network, rates = trial.classifier.network, [group["lr"] for group in optimizer.param_groups]
    for step in range(STEPS):
        trial.losses.append(context.gradients(trial.classifier, images, labels))
        for name, parameter in network.named_parameters():
            if parameter.grad is not None:
                size = parameter.grad.abs().sum().item()
                if not math.isfinite(size):
                    trial.broken.add(name)
                elif size > 0:
                    trial.reached.add(name)
        nn.utils.clip_grad_norm_(list(network.parameters()), 1.0)
        _step(optimizer, rates, step)
    with torch.no_grad():
        trial.losses.append(context.loss(trial.classifier, images, labels).item())


def overfits_one_batch(context: CheckContext, trial: Trial) -> CheckResult:
    """The loss of a few images falls."""
    if not trial.losses:
        return failed("no parameter is trainable", "see 'trainable parameters'")
    figure = (
        f"loss {trial.losses[0]:.3f} -> {min(trial.losses):.3f} in {STEPS} steps on {IMAGES} images (AdamW on a copy)"
    )
    if trial.learned:
        return ok(figure)
    return failed(
        figure,
        f"a model that cannot learn {IMAGES} images cannot learn a data set. Usual causes: detach, no_grad or .data "
        "cuts the gradient, probabilities instead of logits, an input that does not reach the head, NaN",
    )


def gradients(context: CheckContext, trial: Trial) -> CheckResult:
    """Every trainable parameter gets a finite, nonzero gradient."""
    names = [name for name, p in trial.classifier.network.named_parameters() if p.requires_grad]
    unreached = [name for name in names if name not in trial.reached]
    if trial.broken:
        return failed(
            f"NaN or infinite in {len(trial.broken)} of {len(names)} parameters: {list_some(sorted(trial.broken))}",
            "the first step would destroy the weights. Usual causes: a division by zero, a logarithm or root of zero, "
            "float16 overflow",
        )
    if unreached:
        return failed(
            f"zero or missing for {len(unreached)} of {len(names)} parameters: {list_some(unreached)}",
            "these parameters never change. Usual causes: a layer that forward does not use, detach() or "
            "torch.no_grad(), an activation that is always zero",
        )
    return ok(f"finite and nonzero for all {len(names)} trainable parameters")


def optimizer_groups(
    context: CheckContext, classifier: ImageClassifier, optimizer: torch.optim.Optimizer
) -> CheckResult:
    """Every trainable parameter is in exactly one parameter group of the optimizer."""
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    learning = {name: id(p) for name, p in classifier.network.named_parameters() if p.requires_grad}
    missing = [name for name, key in learning.items() if key not in grouped]
    twice = [name for name, key in learning.items() if grouped.count(key) > 1]
    figure = f"{type(optimizer).__name__}, {len(learning)} parameters in {len(optimizer.param_groups)} groups"
    if missing or twice:
        what = f"{list_some(missing)} in none" if missing else f"{list_some(twice)} in several"
        return failed(f"{figure}; {what}", "every trainable parameter must be in exactly one parameter group")
    return ok(figure)


def recipe(
    context: CheckContext, classifier: ImageClassifier, optimizer: torch.optim.Optimizer
) -> Iterator[CheckResult]:
    """Train a few steps with the run's own clipping and full learning rate."""
    images, labels = context.batch.images[:IMAGES], context.batch.labels[:IMAGES]
    rates = [group["lr"] for group in optimizer.param_groups]
    matrices = [p for p in classifier.network.parameters() if p.requires_grad and p.dim() > 1]
    losses: list[float] = []
    update = 0.0
    for step in range(STEPS):
        losses.append(context.gradients(classifier, images, labels))
        norm = gradient_norm(classifier.network)
        context.clip(classifier)
        if step:
            _step(optimizer, rates, step)
        else:
            yield replace(_clipping(context, norm, gradient_norm(classifier.network)), check="clipping")
            before = [p.detach().float().clone() for p in matrices]
            _step(optimizer, rates, step)
            update = RAMP * _relative_update(before, [p.detach().float() for p in matrices])
    with torch.no_grad():
        losses.append(context.loss(classifier, images, labels).item())
    yield replace(_learning_rate(context, max(rates), losses, update), check="learning rate")


def _clipping(context: CheckContext, norm: float, left: float) -> CheckResult:
    value = context.trainer.gradient_clip_val
    if not value:
        return ok(f"none; the first gradient's norm is {norm:.3g}")
    figure = f"gradient_clip_val={value:g} reduces the first gradient's norm from {norm:.3g} to {left:.3g}"
    if left < 1e-3 * norm:
        return failed(
            figure,
            "the clipped gradient is too small to learn from. Usual values: trainer.gradient_clip_val=1.0 with "
            "trainer.gradient_clip_algorithm=norm; null turns clipping off",
        )
    return ok(figure)


def _learning_rate(context: CheckContext, rate: float, losses: list[float], update: float) -> CheckResult:
    figure = (
        f"optimizer.lr={rate:g}: a step changes a weight matrix by {update:.2g} of its norm; "
        f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {STEPS} steps"
    )
    exploded = not all(map(math.isfinite, losses)) or max(losses) > losses[0] + 3 * math.log(context.num_classes)
    if exploded or update > LARGEST_UPDATE:
        return failed(
            figure,
            f"the learning rate is too high: {'the loss explodes' if exploded else 'each step undoes the last one'}. "
            "Usual values: 1e-3 to 3e-4 for Adam and AdamW from scratch, 1e-4 to 3e-5 for fine-tuning, 0.01 to 0.1 for "
            "SGD",
        )
    if min(losses[1:]) >= losses[0]:
        return warning(figure, "the loss does not fall at the full learning rate; a warm-up may still help")
    return ok(figure)


def _step(optimizer: torch.optim.Optimizer, rates: list[float], step: int) -> None:
    """Take an optimizer step after a linear ramp of the learning rates."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * min(1, (step + 1) / RAMP)
    optimizer.step()


def _relative_update(before: list[Tensor], after: list[Tensor]) -> float:
    """The median over matrices of |change| / |weights|, without matrices that start at zero."""
    changes = [
        ((new - old).norm() / old.norm()).item() for old, new in zip(before, after, strict=True) if old.norm() > 0
    ]
    return sorted(changes)[len(changes) // 2] if changes else 0.0


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
