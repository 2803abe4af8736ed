"""Checks of what the network does with images.

They look at a copy that has taken a few steps: a head that starts at zero, as many do, hides everything before it.
"""

import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab.preflight.check_result import CheckResult, failed, ok, some
from vitlab.preflight.context import CheckContext

log = logging.getLogger(__name__)

GROUP = 7  # images looked at together; an odd number, so that no other dimension is taken for the batch
ROUNDING = 1e-4  # relative difference that float32 arithmetic in another order may make
# Of the difference between images: float32 rounds at 3e-7 of it in a network without positions; those of an untrained
# network with LayerScale come to 4e-5.
SAME_ORDER = 1e-5
CELLS = 8  # a side: where nothing says how large the patches are


def head(subject: CheckContext) -> CheckResult:
    """Logits `[B, classes]`, finite, and not probabilities already."""
    check, classes = "head", subject.num_classes
    images = subject.batch.images[:GROUP]
    try:
        with torch.no_grad():
            logits = subject.logits(subject.copy().network, images)
    except Exception as error:  # the user's own code: anything may come out of it
        log.info("preflight: the network fails on a batch", exc_info=error)
        reason = next(iter(str(error).splitlines()), "")
        return failed(
            check,
            f"the network fails on images {list(images.shape)}: {type(error).__name__}: {reason}",
            "run.log has the traceback. Usual causes: an image size that the network was not made for, a shape mistake",
        )
    if not isinstance(logits, Tensor):
        return failed(
            check,
            f"the network returns a {type(logits).__name__}",
            f"what trains is a tensor of logits [images, {classes}]: return that alone",
        )
    figure = f"logits {list(logits.shape)} of {len(images)} images"
    if logits.shape != (len(images), classes):
        return failed(
            check,
            figure,
            f"there are {classes} classes: the shape must be [{len(images)}, {classes}]. Usual causes: a head made for "
            "another data set, num_classes written into the network instead of taken from the config",
        )
    if not logits.isfinite().all():
        return failed(
            check, f"{figure} are NaN or infinite", "the network overflows or divides by zero before it learns"
        )
    rows = logits.float()
    if (rows >= 0).all() and torch.allclose(rows.sum(dim=1), torch.ones(len(rows)).to(rows), atol=1e-2):
        return failed(
            check,
            f"{figure} are positive and sum to 1",
            "the network ends in a softmax, and the loss takes another one of it: gradients vanish and the loss stays "
            "near that of guessing. Return the logits",
        )
    return ok(check, f"{figure}, {classes} classes")


def depends_on_input(subject: CheckContext, network: nn.Module) -> CheckResult:
    """Logits differ between images; the gradient reaches every patch.

    Args:
        subject: The run.
        network: Has taken a few steps; float32, in eval mode.
    """
    check = "sees its input"
    images = subject.plain_images(GROUP).float()
    with torch.no_grad():
        logits = network(images)
    spread = _spread(logits)
    if spread <= ROUNDING * max(logits.abs().max().item(), 1e-3):
        module = first_mixing_module(network, images, subject.plain_images(2 * GROUP).float()[GROUP:])
        why = "Usual causes: a class token that meets no patch, an activation dead from the start, a head on a constant"
        if module:
            why = (
                f"inside, {module} mixes along the batch axis: it looks at the images of a batch where it should look "
                "at the patches of an image. Usual cause: nn.MultiheadAttention or nn.TransformerEncoderLayer without "
                "batch_first=True"
            )
        return failed(
            check,
            f"the logits of {GROUP} images differ by {spread:.1g}",
            f"the network is blind, all images give the same logits. {why[0].upper()}{why[1:]}",
        )
    images.requires_grad_()
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)
    # A clone, for networks that change their input in place.
    (gradient,) = torch.autograd.grad((network(images.clone()) * weights).sum(), images, allow_unused=True)
    gradient = torch.zeros_like(images) if gradient is None else gradient
    size = gradient.abs().sum(dim=0)
    reached = _per_cell(size.sum(dim=0), _cell(network, images)) > 0
    share = f"{int(reached.sum())} of {reached.numel()} patches"
    figure = f"logits differ by {spread:.2g} between images; the gradient reaches {share}"
    dark = [channel for channel in range(len(size)) if not size[channel].any()]
    if dark and reached.any():
        channels = some([str(channel) for channel in dark])
        return failed(check, f"{figure}, but none channel {channels}", "the network does not look at all colours")
    if not reached.all():
        return failed(
            check,
            figure,
            "what stands in the other patches makes no difference. Usual causes: a crop or slice that loses tokens, a "
            "stride larger than the patch",
        )
    return ok(check, figure)


def images_are_independent(subject: CheckContext, network: nn.Module) -> CheckResult:
    """An image's logits stay the same when the rest of the batch changes."""
    check = "images are independent"
    images, others = subject.plain_images(2 * GROUP).float().chunk(2)
    changed = torch.cat([images[:1], others[1:]])
    with torch.no_grad():
        before, again, after = network(images), network(images), network(changed)
    chance = (before - again).abs().max().item()
    if chance > ROUNDING * max(before.abs().max().item(), 1e-3):
        return failed(
            check,
            f"the same images give logits that differ by {chance:.1g}",
            "the network draws random numbers in eval mode, so that no evaluation can be repeated. Usual cause: "
            "F.dropout without training=self.training",
        )
    difference = (before[0] - after[0]).abs().max().item()
    figure = f"an image's logits change by {difference:.1g} with the rest of its batch"
    if difference > ROUNDING * max(before.abs().max().item(), 1e-3):
        module = first_mixing_module(network, images, others)
        return failed(
            check,
            figure,
            f"images see each other along the batch axis{f', in {module} or just before' if module else ''}. "
            "Usual causes: nn.MultiheadAttention or nn.TransformerEncoderLayer without batch_first=True, a softmax or "
            "mean over dim=0, a reshape that mixes batch and tokens",
        )
    return ok(check, figure)


def uses_positions(subject: CheckContext, network: nn.Module) -> CheckResult:
    """Logits change when the patches change places; with patches of random colours, for real ones may be all alike."""
    check = "order matters"
    real = subject.plain_images(GROUP).float()
    cell = _cell(network, real)
    generator = torch.Generator().manual_seed(0)
    colours = torch.randn(len(real), 3, real.shape[2] // cell, real.shape[3] // cell, generator=generator)
    shuffled = colours.flatten(2)[..., torch.randperm(colours[0, 0].numel(), generator=generator)].view_as(colours)
    with torch.no_grad():
        logits, moved = (
            network(F.interpolate(patches.to(real), size=real.shape[2:])) for patches in (colours, shuffled)
        )
    spread = _spread(logits)
    change = (logits - moved).abs().max().item()
    figure = f"logits change by {change:.1g} when patches of {cell} px change places, by {spread:.1g} between images"
    if not subject.positions:
        return ok(check, f"{figure}; model.pos_embed=none")
    if change <= SAME_ORDER * max(spread, 1e-3):
        return failed(
            check,
            figure,
            "the network sees a bag of patches. Usual causes: position embeddings left out, or made and never added to "
            "the tokens",
        )
    return ok(check, figure)


def survives_precision(subject: CheckContext, twin: nn.Module, network: nn.Module) -> CheckResult:
    """Logits in the run's precision against float32.

    Args:
        subject: The run.
        twin: In the run's precision, in eval mode.
        network: The same in float32.
    """
    check, precision = "precision", str(subject.trainer.precision)
    if precision in ("32-true", "64-true"):
        return ok(check, f"{precision}: nothing is rounded")
    images = subject.plain_images(GROUP).float()
    with torch.no_grad():
        exact = network(images)
        rounded = subject.logits(twin, images).float()
    error = ((rounded - exact).square().mean().sqrt() / (exact - exact.mean(dim=0)).square().mean().sqrt()).item()
    figure = f"{precision} logits differ from float32 by {error:.1%} of what images differ by"
    if not error < 0.5:
        return failed(
            check,
            figure,
            "the network does not survive rounding; trainer.precision=32-true keeps it. Usual causes: differences of "
            "large numbers, values beyond float16's 65,504, a norm left out",
        )
    return ok(check, figure)


def first_mixing_module(network: nn.Module, images: Tensor, others: Tensor) -> str | None:
    """The first module whose output for image 0 depends on the rest of its batch: its name and class.

    Args:
        network: In eval mode.
        images, others: `[GROUP, 3, H, W]`; the first of `images` is put among `others`.
    """
    before = _outputs(network, images)
    after = _outputs(network, torch.cat([images[:1], others[1:]]))
    fewer = _outputs(network, images[:-1])  # tells the batch axis from others of the same length
    for name, output in before.items():
        if len(output) != len(images) or len(fewer.get(name, output)) != len(images) - 1:
            continue
        difference = (output[0].float() - after[name][0].float()).abs().max().item()
        if difference > ROUNDING * max(output.float().abs().max().item(), 1e-3):
            module = dict(network.named_modules())[name]
            return f"{name or 'the network'} ({type(module).__name__})"
    return None


def _outputs(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Each module's output by its name, in the order of computation."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def hook(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if isinstance(first, Tensor) and first.dim() > 0:
                outputs[name] = first

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in network.named_modules()]
    try:
        with torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _spread(logits: Tensor) -> float:
    """The largest difference between two images' logits of a class."""
    return (logits.max(dim=0).values - logits.min(dim=0).values).max().item()


def _cell(network: nn.Module, images: Tensor) -> int:
    """Side of a patch in pixels: that of the first convolution whose stride is its kernel, else an eighth."""
    side = images.shape[-1]
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.stride == module.kernel_size and module.kernel_size[0] > 1:
            patch = int(module.kernel_size[0])
            return patch if side % patch == 0 and patch < side else max(side // CELLS, 1)
    return max(side // CELLS, 1)


def _per_cell(image: Tensor, cell: int) -> Tensor:
    """Sums over cells, `[H, W]` -> `[H // cell, W // cell]`."""
    rows, columns = image.shape[0] // cell, image.shape[1] // cell
    return image[: rows * cell, : columns * cell].reshape(rows, cell, columns, cell).sum(dim=(1, 3))
