"""RandAugment, TrivialAugment and AutoAugment for whole batches.

The modules and operations take and return uint8 images `[B, 3, H, W]`. An operation has a magnitude for each image,
`[B]`; those of torchvision, which give the same result for each image, have one for all images. Magnitudes are float64,
but float32 on a device without that.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from vitlab.compat import augmentation_space, autoaugment_policies, precise_dtype
from vitlab.data.counter_rng import CounterRNG
from vitlab.data.transforms import apply_where


def move(images: Tensor, inverse: Tensor) -> Tensor:
    """Move pixels as `inverse_moves` says: nearest neighbour, black outside the image."""
    grid = F.affine_grid(inverse.float(), list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, mode="nearest", align_corners=False).round_().to(torch.uint8)


def adjust_brightness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend towards black (-1) or away from it; 0 changes nothing, here and in the next three."""
    return _blend(images, torch.zeros_like(images[:1, :1, :1, :1]), magnitude)


def adjust_colour(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend towards grey or away from it."""
    return _blend(images, tvf.rgb_to_grayscale(images), magnitude)


def adjust_contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend towards the image's mean grey or away from it."""
    return _blend(images, tvf.rgb_to_grayscale(images).float().mean(dim=(-3, -2, -1), keepdim=True), magnitude)


def adjust_sharpness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend towards a blurred image or away from it, except at the border."""
    kernel = torch.full((3, 1, 3, 3), 1 / 13, device=images.device)
    kernel[:, :, 1, 1] = 5 / 13
    result = images.float()
    inner = result[..., 1:-1, 1:-1]
    blurred = F.conv2d(result, kernel, groups=3).round_()
    inner += (blurred - inner) * (-magnitude).float().view(-1, 1, 1, 1)
    return result.clamp_(0, 255).to(torch.uint8)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep this many of the upper bits of each value."""
    dropped = (8 - bits.long()).view(-1, 1, 1, 1)
    return images & ((255 >> dropped) << dropped).to(torch.uint8)


def solarize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Invert the values at or above a threshold, given as a fraction of white."""
    threshold = (magnitude * 255).float().view(-1, 1, 1, 1)
    return torch.where(images >= threshold, 255 - images, images)


def _blend(images: Tensor, others: Tensor, magnitude: Tensor) -> Tensor:
    weight = (1 + magnitude).view(-1, 1, 1, 1)
    return (images * weight.float() + others * (1 - weight).float()).clamp_(0, 255).to(torch.uint8)


COLOURS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Brightness": adjust_brightness,
    "Color": adjust_colour,
    "Contrast": adjust_contrast,
    "Sharpness": adjust_sharpness,
    "Posterize": posterize,
    "Solarize": solarize,
    "AutoContrast": lambda images, _: tvf.autocontrast(images),
    "Equalize": lambda images, _: tvf.equalize(images),
    "Invert": lambda images, _: 255 - images,
}
MOVES = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
OPERATIONS = ("Identity", *MOVES, *COLOURS)
NAMES = OPERATIONS[:-1]  # RandAugment and TrivialAugment do not invert
SIGNED = frozenset(name for name, (_, signed) in augmentation_space(v2.TrivialAugmentWide).items() if signed)
BINS = 31  # magnitudes of RandAugment and TrivialAugment, from none to the largest


class RandAugment(nn.Module):
    """Apply `num_ops` random operations in a row to each image, at a magnitude from 0 (no change) to 30.

    Cubuk et al. 2020, "RandAugment".
    """

    def __init__(self, num_ops: int, magnitude: int) -> None:
        super().__init__()
        self.num_ops = num_ops
        self.magnitude = magnitude

    def forward(self, images: Tensor, rng: CounterRNG, op_index: int) -> Tensor:
        table = magnitudes(v2.RandAugment, images.shape[-1], images.device)
        uniform = rng.uniform(op_index, 2 * self.num_ops)
        for step in range(self.num_ops):
            operation = (uniform[:, 2 * step] * len(NAMES)).long()
            magnitude = table[operation, self.magnitude]
            images = apply(images, operation, magnitude * signs(operation, uniform[:, 2 * step + 1]))
        return images


class TrivialAugment(nn.Module):
    """Apply one random operation to each image at a random magnitude (Müller and Hutter 2021, "TrivialAugment")."""

    def forward(self, images: Tensor, rng: CounterRNG, op_index: int) -> Tensor:
        uniform = rng.uniform(op_index, 3)
        operation = (uniform[:, 0] * len(NAMES)).long()
        table = magnitudes(v2.TrivialAugmentWide, images.shape[-1], images.device)
        magnitude = table[operation, (uniform[:, 1] * BINS).long()]
        return apply(images, operation, magnitude * signs(operation, uniform[:, 2]))


class AutoAugment(nn.Module):
    """Apply to each image a random one of the 25 sub-policies found for CIFAR-10 (Cubuk et al. 2019, "AutoAugment")."""

    def forward(self, images: Tensor, rng: CounterRNG, op_index: int) -> Tensor:
        operations, probabilities, strengths = policies(images.shape[-1], images.device)
        uniform = rng.uniform(op_index, 5)
        policy = (uniform[:, 0] * len(operations)).long()
        for step in range(2):
            used = uniform[:, 2 * step + 1] < probabilities[policy, step]
            operation = torch.where(used, operations[policy, step], 0)
            images = apply(images, operation, strengths[policy, step] * signs(operation, uniform[:, 2 * step + 2]))
        return images


def apply(images: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    """Apply one operation to each image: int64 `[B]`, indices into `OPERATIONS`, and `[B]`, signed."""
    moved = (operation > 0) & (operation <= len(MOVES))
    images = apply_where(moved, move, images, inverse_moves(operation, magnitude, images.shape[-2:]))
    for name, change in COLOURS.items():
        images = apply_where(operation == OPERATIONS.index(name), change, images, magnitude)
    return images


def inverse_moves(operation: Tensor, magnitude: Tensor, size: Sequence[int]) -> Tensor:
    """Maps from positions in the result of a move to those in the image, on the scale [-1, 1]: `[B, 2, 3]`.

    Shears are tangents and keep the top left corner; shifts, to the right and down, are in pixels, truncated to whole
    ones; the rotation about the centre is in degrees, counter-clockwise. Other operations get the identity.
    """
    height, width = size
    shear_x, shear_y, shift_x, shift_y, degrees = (
        torch.where(operation == OPERATIONS.index(name), magnitude, 0.0) for name in MOVES
    )
    angle = degrees.deg2rad()
    x = [angle.cos(), (shear_x - angle.sin()) * height / width, (shear_x * height - 2 * shift_x.trunc()) / width]
    y = [(shear_y + angle.sin()) * width / height, angle.cos(), (shear_y * width - 2 * shift_y.trunc()) / height]
    return torch.stack([torch.stack(x, dim=1), torch.stack(y, dim=1)], dim=1)


def signs(operation: Tensor, uniform: Tensor) -> Tensor:
    """Random signs, `[B]`: -1 for half of the images if their operation has a direction, else 1."""
    negative = has_direction(operation.device)[operation] & (uniform < 0.5)
    return torch.where(negative, -1.0, 1.0).to(precise_dtype(negative.device))


def constant_table(make: Callable[..., Any]) -> Any:
    """Decorate a function that makes a table on a device: it makes it once, since copying it to a GPU in a training
    step would wait for it, and a compiled transform holds it as a constant."""
    cached = cache(make)

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def table(*arguments: Any) -> Any:
        return cached(*arguments)

    table.cache_clear = cached.cache_clear
    return table


@constant_table
def has_direction(device: torch.device) -> Tensor:
    """Whether each of `OPERATIONS` has a direction: bool `[operations]`."""
    return torch.tensor([name in SIGNED for name in OPERATIONS], device=device)


@constant_table
def magnitudes(transform: type[nn.Module], side: int, device: torch.device, bins: int = BINS) -> Tensor:
    """The magnitudes of torchvision's RandAugment, TrivialAugmentWide or AutoAugment for images of `side` pixels:
    `[operations, bins]`, from none to the largest; zeros for operations without a magnitude."""
    table = torch.zeros(len(OPERATIONS), bins, dtype=torch.float64)
    for name, (magnitudes_of, _) in augmentation_space(transform).items():
        values = magnitudes_of(bins, side, side)
        if values is not None:
            table[OPERATIONS.index(name)] = values
    return table.to(device, precise_dtype(device))


@constant_table
def policies(side: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """AutoAugment's operations (indices into `OPERATIONS`), probabilities and magnitudes, each `[policies, 2]`."""
    found = autoaugment_policies(v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10))
    operations = torch.tensor([[OPERATIONS.index(name) for name, _, _ in policy] for policy in found], device=device)
    probabilities = torch.tensor([[probability for _, probability, _ in policy] for policy in found], device=device)
    steps = torch.tensor([[step or 0 for _, _, step in policy] for policy in found], device=device)
    return operations, probabilities, magnitudes(v2.AutoAugment, side, device, 10)[operations, steps]
