"""Checks that the model's logits depend on each image as they should."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab.errors import first_line, list_some
from vitlab.preflight.context import CheckContext, CheckResult, failed, ok

log = logging.getLogger(__name__)

GROUP = 7  # images in a batch; odd, so that no other dimension is mistaken for the batch
ROUNDING = 1e-4  # relative difference that float32 arithmetic in another order may cause
# Relative to the difference between images: rounding in a network without positions causes 3e-7, positions in an
# untrained network with LayerScale 4e-5.
SAME_ORDER = 1e-5
CELLS = 8  # patches per side, if the network does not show its patch size
ADVICE = {
    "error": "run.log has the traceback. Usual causes: the model was built for another image size, a wrong reshape",
    "shape": "with {classes} classes, the shape must be [{images}, {classes}]. Usual cause: a fixed number of classes "
    "in the model instead of num_classes from the config",
    "not finite": "the untrained model overflows or divides by zero",
    "softmax": "the model ends in a softmax, and the loss applies another: the gradients vanish. Return the logits",
    "equal": "Usual causes: a class token that attends to no patch, an activation that is always zero, a head that "
    "gets a constant",
    "unused patches": "Usual causes: a slice that drops patch tokens, a stride larger than the patch",
    "random": "the model draws random numbers in eval mode. Usual cause: F.dropout without training=self.training",
    "mixed images": "{module} mixes along the batch axis. Usual causes: nn.MultiheadAttention or "
    "nn.TransformerEncoderLayer without batch_first=True, a softmax or mean over dim=0, a reshape that mixes batch and "
    "tokens",
    "no positions": "the model ignores the order of the patches: the position embeddings are missing, or never added "
    "to the tokens. If that is intended, set model.pos_embed=none",
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
    is_softmax = (rows >= 0).all() and (rows.sum(dim=1) - 1).abs().max() < 1e-2
    return failed(f"{figure} are positive and sum to 1", ADVICE["softmax"]) if is_softmax else ok(figure)


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


@full_float32_precision()
def depends_on_input(context: CheckContext) -> CheckResult:
    """Logits differ between images, and the gradient reaches every patch."""
    network, images = context.network, context.plain_images(GROUP).requires_grad_()
    output = network(images.clone())  # for networks that change their input in place
    spread = _spread(output)
    if spread <= ROUNDING * _scale(output):
        module = find_mixing_module(network, images.detach(), context.plain_images(2 * GROUP)[GROUP:])
        advice = ADVICE["mixed images"].format(module=module) if module else ADVICE["equal"]
        figure = f"the logits of {GROUP} images differ by {spread:.1g}"
        return failed(figure, f"the logits are the same for every image. {advice}")
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
    (gradient,) = torch.autograd.grad((output * weights).sum(), images, materialize_grads=True)
    size = gradient.abs().sum(dim=0)
    reached = F.max_pool2d(size.sum(dim=0)[None], _patch_size(network, images)) > 0
    figure = (
        f"logits differ by {spread:.2g} between images; the gradient reaches {int(reached.sum())} of "
        f"{reached.numel()} patches"
    )
    unused = [str(channel) for channel in range(len(size)) if not size[channel].any()]
    if unused and reached.any():
        return failed(f"{figure}, but not channel {list_some(unused)}", "the model ignores a colour channel")
    return ok(figure) if reached.all() else failed(figure, ADVICE["unused patches"])


@torch.no_grad()
@full_float32_precision()
def images_are_independent(context: CheckContext) -> CheckResult:
    """An image's logits do not change with the rest of its batch."""
    network = context.network
    images, others = context.plain_images(2 * GROUP).chunk(2)
    before, again, after = network(images), network(images), network(torch.cat([images[:1], others[1:]]))
    noise = (before - again).abs().max().item()
    if noise > ROUNDING * _scale(before):
        return failed(f"the logits of the same images differ by {noise:.1g} between two passes", ADVICE["random"])
    difference = (before[0] - after[0]).abs().max().item()
    figure = f"an image's logits change by {difference:.1g} with the rest of its batch"
    if difference <= ROUNDING * _scale(before):
        return ok(figure)
    module = find_mixing_module(network, images, others)
    where = f"{module}, or an operation just before it," if module else "the model"
    return failed(figure, ADVICE["mixed images"].format(module=where))


@torch.no_grad()
@full_float32_precision()
def uses_positions(context: CheckContext) -> CheckResult:
    """Logits change when patches swap positions; the patches have random colours, because real ones may be alike."""
    network, real = context.network, context.plain_images(GROUP)
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
    return failed(figure, ADVICE["no positions"]) if change <= SAME_ORDER * max(spread, 1e-3) else ok(figure)


@torch.no_grad()
@full_float32_precision()
def precision(context: CheckContext) -> CheckResult:
    """Logits in the run's precision are close to those in float32."""
    name = str(context.trainer.precision)
    if name in ("32-true", "64-true"):
        return ok(f"{name}: no reduced precision")
    images = context.plain_images(GROUP)
    exact = context.network(images)
    output = context.logits(context.trial.classifier.network, images).float()
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
    sizes = [m.kernel_size[0] for m in network.modules() if isinstance(m, nn.Conv2d) and m.stride == m.kernel_size]
    side, patch = images.shape[-1], next((int(size) for size in sizes if size > 1), images.shape[-1])
    return patch if patch < side and side % patch == 0 else max(side // CELLS, 1)
