"""Checks that model and recipe can learn, on copies that are thrown away."""

import math
from collections import Counter

import torch
from torch import Tensor, nn

from vitlab.errors import list_some
from vitlab.preflight.context import IMAGES, LARGEST_UPDATE, STEPS, CheckContext, CheckResult, failed, ok, warning

FAR_FROM_CHANCE = 2.5  # nats; untrained models with batch norm may start 2 above ln(classes)
LAYERS = (
    *(nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
)
ADVICE = {
    "plain tensor": "it is not trained, moved to the device or saved. Use nn.Parameter if it should learn, "
    "register_buffer if not",
    "frozen layers": "finetune trains all parameters, but these have requires_grad=False. Usual cause: a forgotten "
    "requires_grad_(False). To train only the head, set finetune=head_only",
    "frozen": "right for fixed position embeddings, wrong for learned ones",
    "high loss": "the untrained model is confident of wrong predictions. Usual causes: weights initialised too large, "
    "a missing norm, logits multiplied by a temperature, a pretrained head with another order of classes",
    "low loss": "an untrained head cannot be better than chance. Usual causes: the label is part of the input, the "
    "loss is not the cross-entropy of these labels",
    "not learned": f"a model that cannot learn {IMAGES} images cannot learn a data set. Usual causes: detach, no_grad "
    "or .data cuts the gradient, probabilities instead of logits, NaN, an input that does not reach the head",
    "broken gradient": "the first step would destroy the weights. Usual causes: a division by zero, a logarithm or "
    "root of zero, float16 overflow",
    "no gradient": "these parameters never change. Usual causes: a layer that forward does not use, detach() or "
    "torch.no_grad(), an activation that is always zero",
    "clipped away": "the clipped gradient is too small to learn from. Usual values: trainer.gradient_clip_val=1.0 with "
    "trainer.gradient_clip_algorithm=norm; null turns clipping off",
    "high rate": "the learning rate is too high: {reason}. Usual values: 1e-3 to 3e-4 for Adam and AdamW from scratch, "
    "1e-4 to 3e-5 for fine-tuning, 0.01 to 0.1 for SGD",
    "loss does not fall": "the loss does not fall at the full learning rate; a warm-up may still help",
}


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
    return warning(f"{figure}; frozen: {list_some(frozen)}", ADVICE["frozen"]) if frozen else ok(figure)


def initial_loss(context: CheckContext) -> CheckResult:
    """The loss starts near that of chance, equal logits: for cross-entropy ln(classes)."""
    labels, loss = context.batch.labels[:IMAGES], context.recipe.losses[0]
    equal = torch.zeros(len(labels), context.num_classes, device=labels.device)
    with torch.no_grad():
        chance = context.classifier.training_loss(equal, labels).item()
    figure = f"{loss:.3f}; chance among {context.num_classes} classes is {chance:.3f}"
    if not loss < chance + 0.7:  # also if it is NaN
        find = warning if loss < chance + FAR_FROM_CHANCE else failed
        return find(figure, ADVICE["high loss"])
    is_too_low = loss < chance - 0.7 and not context.head_is_loaded
    return failed(figure, ADVICE["low loss"]) if is_too_low else ok(figure)


def overfits_one_batch(context: CheckContext) -> CheckResult:
    """The loss of a few images falls."""
    losses, optimizer = context.trial.losses, type(context.trial.optimizer).__name__
    if not losses:
        return failed("no parameter is trainable", "see 'trainable parameters'")
    figure = f"loss {losses[0]:.3f} -> {min(losses):.3f} in {STEPS} steps on {IMAGES} images ({optimizer} on a copy)"
    return ok(figure) if context.trial.learned else failed(figure, ADVICE["not learned"])


def gradients(context: CheckContext) -> CheckResult:
    """Every trainable parameter gets a finite, nonzero gradient."""
    names = [name for name, p in context.trial.classifier.network.named_parameters() if p.requires_grad]
    unreached = [name for name in names if name not in context.trial.reached]
    broken = sorted(context.trial.broken)
    if broken:
        figure = f"NaN or infinite in {len(broken)} of {len(names)} parameters: {list_some(broken)}"
        return failed(figure, ADVICE["broken gradient"])
    if unreached:
        figure = f"zero or missing for {len(unreached)} of {len(names)} parameters: {list_some(unreached)}"
        return failed(figure, ADVICE["no gradient"])
    return ok(f"finite and nonzero for all {len(names)} trainable parameters")


def optimizer_groups(context: CheckContext) -> CheckResult:
    """Every trainable parameter is in exactly one parameter group of the optimizer."""
    trial = context.recipe
    groups = trial.optimizer.param_groups
    learning = {name: id(p) for name, p in trial.classifier.network.named_parameters() if p.requires_grad}
    counts = Counter(id(parameter) for group in groups for parameter in group["params"])
    missing = [name for name, key in learning.items() if counts[key] == 0]
    twice = [name for name, key in learning.items() if counts[key] > 1]
    figure = f"{type(trial.optimizer).__name__}, {len(learning)} parameters in {len(groups)} groups"
    if missing or twice:
        fault = f"{list_some(missing)} in none" if missing else f"{list_some(twice)} in several"
        return failed(f"{figure}; {fault}", "every trainable parameter must be in exactly one parameter group")
    return ok(figure)


def clipping(context: CheckContext) -> CheckResult:
    """Gradient clipping leaves enough of the gradient."""
    value, (norm, left) = context.trainer.gradient_clip_val, context.recipe.norms
    if not value:
        return ok(f"none; the first gradient's norm is {norm:.3g}")
    figure = f"gradient_clip_val={value:g} reduces the first gradient's norm from {norm:.3g} to {left:.3g}"
    return failed(figure, ADVICE["clipped away"]) if left < 1e-3 * norm else ok(figure)


def learning_rate(context: CheckContext) -> CheckResult:
    """A few steps at the full learning rate do not make the loss explode."""
    trial = context.recipe
    losses, rate = trial.losses, max(group["lr"] for group in trial.optimizer.param_groups)
    figure = (
        f"optimizer.lr={rate:g}: a step changes a weight matrix by {trial.update:.2g} of its norm; "
        f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {STEPS} steps"
    )
    exploded = not all(map(math.isfinite, losses)) or max(losses) > losses[0] + 3 * math.log(context.num_classes)
    if exploded or trial.update > LARGEST_UPDATE:
        reason = "the loss explodes" if exploded else "each step undoes the last one"
        return failed(figure, ADVICE["high rate"].format(reason=reason))
    return ok(figure) if min(losses[1:]) < losses[0] else warning(figure, ADVICE["loss does not fall"])
