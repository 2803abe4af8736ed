"""Checks that the model's logits depend on each image as they should.

`network` is a float32 copy in eval mode, trained for a few steps: a head that starts at zero would hide the rest.
"""

import logging
from contextlib import ExitStack
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab.errors import first_line
from vitlab.preflight.context import CheckContext, CheckResult, failed, list_some, ok

log = logging.getLogger(__name__)

GROUP = 7  # images in a batch; odd, so that no other dimension is mistaken for the batch
ROUNDING = 1e-4  # relative difference that float32 arithmetic in another order may cause
# Relative to the difference between images: rounding in a network without positions causes 3e-7, positions in an
# untrained network with LayerScale 4e-5.
SAME_ORDER = 1e-5
CELLS = 8  # patches per side, if the network does not show its patch size
ADVICE = {
    "error": "run.log has the traceback. Usual causes: the model was built for another image size, a wrong reshape",
    "shape": "with {classes} classes, the shape must be [{images}, {classes}]. Usual causes: a head for another data "
    "set, a fixed number of classes in the model instead of num_classes from the config",
    "not finite": "the untrained model overflows or divides by zero",
    "softmax": "the model ends in a softmax, and the loss applies another: the gradients vanish and the loss stays "
    "near chance. Return the logits without softmax",
    "equal": "the logits are the same for every image. Usual causes: a class token that attends to no patch, an "
    "activation that is always zero, a head that gets a constant",
    "attention over the batch": "the logits are the same for every image. {module} mixes along the batch axis: it "
    "attends over the images of a batch instead of the patches of an image. Usual cause: nn.MultiheadAttention or "
    "nn.TransformerEncoderLayer without batch_first=True",
    "unused patches": "the model ignores the other patches. Usual causes: a slice that drops patch tokens, a stride "
    "larger than the patch",
    "random": "the model draws random numbers in eval mode, so no evaluation can be repeated. Usual cause: F.dropout "
    "without training=self.training",
    "mixed images": "{module} mixes along the batch axis, so an image's logits depend on the other images. Usual "
    "causes: nn.MultiheadAttention or nn.TransformerEncoderLayer without batch_first=True, a softmax or mean over "
    "dim=0, a reshape that mixes batch and tokens",
    "no positions": "the model ignores the order of the patches. Usual cause: the position embeddings are missing, or "
    "are never added to the tokens. If that is intended, set model.pos_embed=none",
    "rounding": "the model does not work in this precision; trainer.precision=32-true does. Usual causes: differences "
    "between large numbers, values above float16's 65,504, a missing norm",
}


def logits(context: CheckContext) -> CheckResult:
    """The model returns finite logits `[B, classes]`, not probabilities."""
    classes, images = context.num_classes, context.batch.images[:GROUP]
    try:
        with torch.no_grad():
            output = context.logits(context.copy().network, images)
    except Exception as error:  # the user's code may raise anything
        log.info("preflight: the model fails on a batch", exc_info=error)
        reason = f"{type(error).__name__}: {first_line(error)}"
        return failed(f"the model fails on images of shape {list(images.shape)}: {reason}", ADVICE["error"])
    if not isinstance(output, Tensor):
        advice = f"vitlab trains on one tensor of logits [images, {classes}]: return only that"
        return failed(f"the model returns a {type(output).__name__}", advice)
    figure = f"logits {list(output.shape)} for {len(images)} images"
    if output.shape != (len(images), classes):
        return failed(figure, ADVICE["shape"].format(classes=classes, images=len(images)))
    if not output.isfinite().all():
        return failed(f"{figure} are NaN or infinite", ADVICE["not finite"])
    rows = output.float()
    if (rows >= 0).all() and torch.allclose(rows.sum(dim=1), torch.ones(len(rows)).to(rows), atol=1e-2):
        return failed(f"{figure} are positive and sum to 1", ADVICE["softmax"])
    return ok(figure)


def depends_on_input(context: CheckContext, network: nn.Module) -> CheckResult:
    """Logits differ between images, and the gradient reaches every patch."""
    images = context.plain_images(GROUP)
    with torch.no_grad():
        output = network(images)
    spread = _spread(output)
    if spread <= ROUNDING * _scale(output):
        module = find_mixing_module(network, images, context.plain_images(2 * GROUP)[GROUP:])
        advice = ADVICE["attention over the batch"].format(module=module) if module else ADVICE["equal"]
        return failed(f"the logits of {GROUP} images differ by {spread:.1g}", advice)
    images.requires_grad_()
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
    # A clone, for networks that change their input in place.
    (gradient,) = torch.autograd.grad((network(images.clone()) * weights).sum(), images, materialize_grads=True)
    size = gradient.abs().sum(dim=0)
    reached = F.max_pool2d(size.sum(dim=0)[None], _patch_size(network, images)) > 0
    figure = (
        f"logits differ by {spread:.2g} between images; the gradient reaches {int(reached.sum())} of "
        f"{reached.numel()} patches"
    )
    unused = [str(channel) for channel in range(len(size)) if not size[channel].any()]
    if unused and reached.any():
        return failed(f"{figure}, but not channel {list_some(unused)}", "the model ignores a colour channel")
    if not reached.all():
        return failed(figure, ADVICE["unused patches"])
    return ok(figure)


@torch.no_grad()
def images_are_independent(context: CheckContext, network: nn.Module) -> CheckResult:
    """An image's logits do not change with the rest of its batch."""
    images, others = context.plain_images(2 * GROUP).chunk(2)
    before, again, after = network(images), network(images), network(torch.cat([images[:1], others[1:]]))
    noise = (before - again).abs().max().item()
    if noise > ROUNDING * _scale(before):
        return failed(f"the logits of the same images differ by {noise:.1g} between two passes", ADVICE["random"])
    difference = (before[0] - after[0]).abs().max().item()
    figure = f"an image's logits change by {difference:.1g} with the rest of its batch"
    if difference > ROUNDING * _scale(before):
        module = find_mixing_module(network, images, others)
        where = f"{module}, or an operation just before it," if module else "the model"
        return failed(figure, ADVICE["mixed images"].format(module=where))
    return ok(figure)


@torch.no_grad()
def uses_positions(context: CheckContext, network: nn.Module) -> CheckResult:
    """Logits change when patches swap positions; the patches have random colours, because real ones may be alike."""
    real = context.plain_images(GROUP)
    patch = _patch_size(network, real)
    generator = torch.Generator().manual_seed(0)
    colours = torch.randn(len(real), 3, real.shape[2] // patch, real.shape[3] // patch, generator=generator)
    shuffled = colours.flatten(2)[..., torch.randperm(colours[0, 0].numel(), generator=generator)].view_as(colours)
    output, moved = (network(F.interpolate(c.to(real), size=real.shape[2:])) for c in (colours, shuffled))
    spread = _spread(output)
    change = (output - moved).abs().max().item()
    figure = f"logits change by {change:.1g} when patches of {patch} px are shuffled, by {spread:.1g} between images"
    if not context.positions:
        return ok(f"{figure}; model.pos_embed=none")
    if change <= SAME_ORDER * max(spread, 1e-3):
        return failed(figure, ADVICE["no positions"])
    return ok(figure)


@torch.no_grad()
def precision(context: CheckContext, rounded: nn.Module, network: nn.Module) -> CheckResult:
    """Logits of `rounded`, in the run's precision, are close to those of `network` in float32."""
    name = str(context.trainer.precision)
    if name in ("32-true", "64-true"):
        return ok(f"{name}: no reduced precision")
    images = context.plain_images(GROUP)
    exact, output = network(images), context.logits(rounded, images).float()
    error = ((output - exact).square().mean().sqrt() / (exact - exact.mean(dim=0)).square().mean().sqrt()).item()
    figure = f"the rounding error of {name} logits is {error:.1%} of the difference between images"
    return ok(figure) if error < 0.5 else failed(figure, ADVICE["rounding"])  # also if it is NaN


def find_mixing_module(network: nn.Module, images: Tensor, others: Tensor) -> str | None:
    """Name and class of the first module whose output for the first of `images` changes among `others`."""
    before = _outputs(network, images)
    after = _outputs(network, torch.cat([images[:1], others[1:]]))
    fewer = _outputs(network, images[:-1])  # tells the batch axis from other axes of the same length
    for name, output in before.items():
        if len(output) != len(images) or len(fewer.get(name, output)) != len(images) - 1:
            continue
        if (output[0].float() - after[name][0].float()).abs().max().item() > ROUNDING * _scale(output.float()):
            return f"{name or 'the model'} ({type(network.get_submodule(name)).__name__})"
    return None


@torch.no_grad()
def _outputs(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Each module's output by its name, in the order of computation."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, inputs: object, output: object) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        if isinstance(first, Tensor) and first.dim() > 0:
            outputs[name] = first

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            hooks.enter_context(module.register_forward_hook(partial(keep, name)))
        network(images)
    return outputs


def _scale(output: Tensor) -> float:
    return max(output.abs().max().item(), 1e-3)


def _spread(output: Tensor) -> float:
    """The largest difference between two images' logits for a class."""
    return (output.amax(dim=0) - output.amin(dim=0)).max().item()


def _patch_size(network: nn.Module, images: Tensor) -> int:
    """The kernel size of the first convolution whose stride equals it, else an eighth of the image, in pixels."""
    side = images.shape[-1]
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.stride == module.kernel_size and module.kernel_size[0] > 1:
            patch = int(module.kernel_size[0])
            if side % patch == 0 and patch < side:
                return patch
            break
    return max(side // CELLS, 1)
