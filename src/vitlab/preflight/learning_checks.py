"""Checks of what training would do, on copies that are thrown away."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vitlab.classifier import ImageClassifier
from vitlab.data import main_class
from vitlab.preflight.check_result import CheckResult, failed, ok, some, warning
from vitlab.preflight.context import CheckContext, gradient_norm

IMAGES = 8  # of the batch that is learned by heart
STEPS = 6
# Rates of AdamW: at the first, sound networks learn 8 images (vit_scratch, vit_base, ResNet-18, small ones of timm's:
# the loss falls to 0.5 to 0.9 of its start); the others are for what is scaled differently.
SAFE_RATES = (5e-4, 5e-3, 5e-5)
LEARNED = 0.93  # of the loss at the start
FAR_FROM_GUESSING = 2.5  # nats; untrained networks with batch norms may start 2 above ln(classes)
RAMP = 3  # steps to the whole learning rate
# At the shipped optimizers and networks a step changes a weight matrix by up to 0.05 of its norm; at 100 times their
# learning rates AdamW's by 2 to 5.
LARGEST_UPDATE = 0.5
LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.Embedding)


@dataclass
class Probe:
    """A copy that has learned a few images by heart.

    Attributes:
        twin: The copy.
        losses: Before each step and after the last, in nats.
        reached: Names of the parameters that had a gradient other than zero in some step.
        broken: Names of the parameters whose gradient was NaN or infinite.
    """

    twin: ImageClassifier
    losses: list[float] = field(default_factory=list)
    reached: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)

    @property
    def learned(self) -> bool:
        return min(self.losses) <= LEARNED * self.losses[0]


def loss_at_start(subject: CheckContext) -> CheckResult:
    """Near that of guessing, ln(classes)."""
    check, guessing = "loss at the start", math.log(subject.num_classes)
    images, labels = subject.batch.images[: 2 * IMAGES], subject.batch.labels[: 2 * IMAGES]
    with torch.no_grad():
        loss = subject.loss(subject.copy(), images, labels).item()
    figure = f"{loss:.3f}; guessing among {subject.num_classes} classes is ln {subject.num_classes} = {guessing:.3f}"
    if not loss < guessing + 0.7:
        find = warning if loss < guessing + FAR_FROM_GUESSING else failed
        return find(
            check,
            figure,
            "the network starts out sure of wrong answers. Usual causes: weights or embeddings drawn too large, a norm "
            "left out, logits multiplied by a temperature, a loaded head whose classes stand in another order",
        )
    if loss < guessing - 0.7 and not subject.head_is_loaded:
        return failed(
            check,
            figure,
            "an untrained head knows the answers. Usual causes: the label is part of the input, a loss that is not "
            "cross-entropy of these labels",
        )
    return ok(check, figure)


def probe(subject: CheckContext) -> Probe:
    """Learns a few images by heart with an optimizer that is safe for all, whatever the run's own is.

    The label of a mixed image is its larger share: a half of each of two classes is no better than guessing.
    """
    tried = []
    for rate in SAFE_RATES:
        torch.manual_seed(0)
        attempt = Probe(subject.copy())
        learning = [p for p in attempt.twin.network.parameters() if p.requires_grad]
        if not learning:
            return attempt
        _train(subject, attempt, torch.optim.AdamW(learning, lr=rate, weight_decay=0.0))
        if attempt.learned:
            return attempt
        tried.append(attempt)
    return tried[0]


def _train(subject: CheckContext, attempt: Probe, optimizer: torch.optim.Optimizer) -> None:
    images, labels = subject.batch.images[:IMAGES], main_class(subject.batch.labels[:IMAGES])
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group.setdefault("whole_lr", group["lr"])
            group["lr"] = group["whole_lr"] * min(1, (step + 1) / RAMP)
        attempt.losses.append(subject.gradients(attempt.twin, images, labels))
        for name, parameter in attempt.twin.network.named_parameters():
            if parameter.grad is not None:
                size = parameter.grad.abs().sum().item()
                if not math.isfinite(size):
                    attempt.broken.add(name)
                elif size > 0:
                    attempt.reached.add(name)
        nn.utils.clip_grad_norm_(list(attempt.twin.network.parameters()), 1.0)
        optimizer.step()
    with torch.no_grad():
        attempt.losses.append(subject.loss(attempt.twin, images, labels).item())


def overfits(attempt: Probe) -> CheckResult:
    """One batch can be learned by heart."""
    check = "one batch is learned"
    if not attempt.losses:
        return failed(check, "no parameter learns", "see 'what learns'")
    first, best = attempt.losses[0], min(attempt.losses)
    figure = f"loss {first:.3f} -> {best:.3f} in {STEPS} steps on {IMAGES} images (AdamW on a copy)"
    if attempt.learned:
        return ok(check, figure)
    return failed(
        check,
        figure,
        "what can't learn 8 images can't learn a data set. Usual causes: the gradient is cut (detach, no_grad, .data), "
        "probabilities in place of logits, an input that does not reach the head, NaN",
    )


def gradients(attempt: Probe) -> CheckResult:
    """Every parameter that learns gets a finite gradient other than zero."""
    check = "gradients"
    names = [name for name, p in attempt.twin.network.named_parameters() if p.requires_grad]
    unreached = [name for name in names if name not in attempt.reached]
    if attempt.broken:
        broken = sorted(attempt.broken)
        return failed(
            check,
            f"NaN or infinite in {len(broken)} of {len(names)} parameters: {some(broken)}",
            "the first step destroys the weights. Usual causes: a division by zero, a logarithm or root of zero, "
            "float16 overflow",
        )
    if unreached:
        return failed(
            check,
            f"none reaches {len(unreached)} of {len(names)} parameters: {some(unreached)}",
            "they stay as they were drawn. Usual causes: a layer that forward does not use, detach() or "
            "torch.no_grad() on the way, an activation that is dead from the start",
        )
    return ok(check, f"finite and not zero in all {len(names)} parameters that learn")


def what_learns(subject: CheckContext) -> CheckResult:
    """Frozen is what `finetune` freezes; nothing else."""
    check, network = "what learns", subject.classifier.network
    parameters = dict(network.named_parameters())
    learning = sum(p.numel() for p in parameters.values() if p.requires_grad)
    total = sum(p.numel() for p in parameters.values())
    figure = f"{learning:,} of {total:,} parameters"
    astray = [
        _join(name, key)
        for name, module in network.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 1
    ]
    if astray:
        return failed(
            check,
            f"{figure}; {some(astray)} is a plain tensor",
            "it neither learns nor moves to the device, and no checkpoint holds it. nn.Parameter makes it learn, "
            "register_buffer keeps it",
        )
    if subject.classifier.finetuning.freeze_epochs == "all":
        return ok(check, f"{figure}: the head, as finetune asks")
    frozen = [name for name, p in parameters.items() if not p.requires_grad]
    weights = [_join(n, k) for n, m in network.named_modules() if isinstance(m, LAYERS) for k in m._parameters]
    of_layers = [name for name in frozen if name in weights]
    if of_layers:
        return failed(
            check,
            f"{figure}; frozen: {some(of_layers)}",
            "finetune lets everything learn, and these have requires_grad=False. Usual causes: requires_grad_(False) "
            "left over, layers made under torch.no_grad. Meant so? finetune=head_only",
        )
    if frozen:
        return warning(
            check, f"{figure}; frozen: {some(frozen)}", "right for fixed position embeddings, not for learned ones"
        )
    return ok(check, figure)


def optimizer_groups(twin: ImageClassifier, optimizer: torch.optim.Optimizer) -> CheckResult:
    """Every parameter that learns is in exactly one group of the optimizer."""
    check = "optimizer"
    counts: dict[int, int] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    learning = {name: p for name, p in twin.network.named_parameters() if p.requires_grad}
    left_out = [name for name, p in learning.items() if not counts.get(id(p))]
    twice = [name for name, p in learning.items() if counts.get(id(p), 0) > 1]
    figure = f"{type(optimizer).__name__}, {len(learning)} parameters in {len(optimizer.param_groups)} groups"
    if left_out or twice:
        what = f"{some(left_out)} in none" if left_out else f"{some(twice)} in several"
        return failed(check, f"{figure}; {what}", "each parameter that learns must stand in exactly one group")
    return ok(check, figure)


def recipe(subject: CheckContext, twin: ImageClassifier, optimizer: torch.optim.Optimizer) -> Iterator[CheckResult]:
    """The run's own learning rate and clipping, at their full strength."""
    images, labels = subject.batch.images[:IMAGES], subject.batch.labels[:IMAGES]
    rates = [group["lr"] for group in optimizer.param_groups]
    matrices = [p for p in twin.network.parameters() if p.requires_grad and p.dim() > 1]
    losses: list[float] = []
    for step in range(STEPS):
        losses.append(subject.gradients(twin, images, labels))
        if step == 0:
            norm = gradient_norm(twin.network)
            subject.clip(twin)
            yield _clipping(subject, norm, gradient_norm(twin.network))
            before = [p.detach().float().clone() for p in matrices]
        else:
            subject.clip(twin)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1, (step + 1) / RAMP)
        optimizer.step()
        if step == 0:
            update = RAMP * _relative_update(before, [p.detach().float() for p in matrices])
    with torch.no_grad():
        losses.append(subject.loss(twin, images, labels).item())
    yield _learning_rate(subject, max(rates), losses, update)


def _clipping(subject: CheckContext, norm: float, left: float) -> CheckResult:
    check, value = "clipping", subject.trainer.gradient_clip_val
    if not value:
        return ok(check, f"none; the first gradient's norm is {norm:.3g}")
    figure = f"gradient_clip_val={value:g} leaves {left:.3g} of the first gradient's norm {norm:.3g}"
    if left < 1e-3 * norm:
        return failed(
            check,
            figure,
            "next to nothing is left to learn from. Usual values: 1.0 for trainer.gradient_clip_algorithm=norm; null "
            "clips nothing",
        )
    return ok(check, figure)


def _learning_rate(subject: CheckContext, rate: float, losses: list[float], update: float) -> CheckResult:
    check = "learning rate"
    figure = (
        f"optimizer.lr={rate:g}: a step changes a weight matrix by {update:.2g} of its norm; "
        f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {STEPS} steps"
    )
    exploded = not all(map(math.isfinite, losses)) or max(losses) > losses[0] + 3 * math.log(subject.num_classes)
    if exploded or update > LARGEST_UPDATE:
        what = "the loss explodes" if exploded else "each step overwrites what the last one learned"
        usual = "1e-3 to 3e-4 for Adam and AdamW from scratch, 1e-4 to 3e-5 for fine-tuning, 0.01 to 0.1 for SGD"
        return failed(check, figure, f"{what}: the learning rate is too high. Usual: {usual}")
    if min(losses[1:]) >= losses[0]:
        return warning(
            check, figure, "the loss does not fall at the whole learning rate; the warm-up may still save it"
        )
    return ok(check, figure)


def _relative_update(before: list[Tensor], after: list[Tensor]) -> float:
    """The median over matrices of |change| / |weights|; matrices that start at zero are left out."""
    changes = [
        ((new - old).norm() / old.norm()).item() for old, new in zip(before, after, strict=True) if old.norm() > 0
    ]
    return sorted(changes)[len(changes) // 2] if changes else 0.0


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
