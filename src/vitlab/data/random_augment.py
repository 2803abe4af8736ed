"""RandAugment, TrivialAugment and AutoAugment for whole batches."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tvf

from vitlab.data import image_ops
from vitlab.data.counter_rng import CounterRNG
from vitlab.data.image_ops import apply_where

COLOURS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Brightness": image_ops.adjust_brightness,
    "Color": image_ops.adjust_colour,
    "Contrast": image_ops.adjust_contrast,
    "Sharpness": image_ops.adjust_sharpness,
    "Posterize": image_ops.posterize,
    "Solarize": image_ops.solarize,
    "AutoContrast": lambda images, _: tvf.autocontrast(images),
    "Equalize": lambda images, _: tvf.equalize(images),
    "Invert": lambda images, _: 255 - images,
}
MOVES = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")  # in the order of `image_ops.invert_affine`
OPERATIONS = ("Identity", *MOVES, *COLOURS)
NAMES = OPERATIONS[:-1]  # RandAugment and TrivialAugment do not invert
BLENDS = ("Brightness", "Color", "Contrast", "Sharpness")
SIGNED = frozenset((*MOVES, *BLENDS))
BINS = 31  # magnitudes of RandAugment and TrivialAugment, from none to the largest
AUTOAUGMENT_BINS = 10
# Cubuk et al. 2019, "AutoAugment", table 7, found on CIFAR-10: two operations in a row, each with its probability and
# its magnitude bin.
CIFAR10_POLICIES: tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...] = (
    (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
    (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
)


class RandAugment(nn.Module):
    """Apply `num_ops` random operations to each image at one magnitude (Cubuk et al. 2020, "RandAugment").

    Args:
        num_ops: Operations in a row, at least 1.
        magnitude: 0 (no change) to 30.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(self, num_ops: int, magnitude: int) -> None:
        super().__init__()
        if num_ops < 1:
            raise ValueError(f"RandAugment: num_ops={num_ops} must be at least 1")
        if not 0 <= magnitude < BINS:
            raise ValueError(f"RandAugment: magnitude={magnitude} must be 0 to {BINS - 1}")
        self.num_ops = num_ops
        self.magnitude = magnitude

    def forward(self, images: Tensor, rng: CounterRNG, op_index: int) -> Tensor:
        """uint8 `[B, 3, H, W]` -> the same."""
        table = standard_magnitudes(images.shape[-1], images.device)
        uniform = rng.uniform(op_index, 2 * self.num_ops)
        for step in range(self.num_ops):
            operation = (uniform[:, 2 * step] * len(NAMES)).long()
            magnitude = table[operation, self.magnitude]
            images = apply(images, operation, magnitude * signs(operation, uniform[:, 2 * step + 1]))
        return images


class TrivialAugment(nn.Module):
    """Apply one random operation to each image at a random magnitude (Müller and Hutter 2021, "TrivialAugment")."""

    def forward(self, images: Tensor, rng: CounterRNG, op_index: int) -> Tensor:
        """uint8 `[B, 3, H, W]` -> the same."""
        uniform = rng.uniform(op_index, 3)
        operation = (uniform[:, 0] * len(NAMES)).long()
        magnitude = wide_magnitudes(images.device)[operation, (uniform[:, 1] * BINS).long()]
        return apply(images, operation, magnitude * signs(operation, uniform[:, 2]))


class AutoAugment(nn.Module):
    """Apply to each image a random one of the 25 sub-policies found for CIFAR-10 (Cubuk et al. 2019, "AutoAugment")."""

    def forward(self, images: Tensor, rng: CounterRNG, op_index: int) -> Tensor:
        """uint8 `[B, 3, H, W]` -> the same."""
        operations, probabilities, strengths = _policies(images.shape[-1], images.device)
        uniform = rng.uniform(op_index, 5)
        policy = (uniform[:, 0] * len(CIFAR10_POLICIES)).long()
        for step in range(2):
            used = uniform[:, 2 * step + 1] < probabilities[policy, step]
            operation = torch.where(used, operations[policy, step], 0)
            images = apply(images, operation, strengths[policy, step] * signs(operation, uniform[:, 2 * step + 2]))
        return images


def apply(images: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    """Apply one operation to each image.

    Args:
        images: uint8 `[B, 3, H, W]`.
        operation: int64 `[B]`, indices into `OPERATIONS`.
        magnitude: float64 `[B]`, signed.
    """
    shear_x, shear_y, shift_x, shift_y, degrees = (
        torch.where(operation == OPERATIONS.index(name), magnitude, 0.0) for name in MOVES
    )
    height, width = images.shape[-2:]
    inverse = image_ops.invert_affine(shear_x, shear_y, shift_x, shift_y, degrees, height, width)
    moved = (operation > 0) & (operation <= len(MOVES))
    images = apply_where(moved, image_ops.transform_affinely, images, inverse)
    for name, change in COLOURS.items():
        images = apply_where(operation == OPERATIONS.index(name), change, images, magnitude)
    return images


def signs(operation: Tensor, uniform: Tensor) -> Tensor:
    """Random signs, float64 `[B]`: -1 for half of the images if their operation has a direction, else 1."""
    negative = _has_direction(operation.device)[operation] & (uniform < 0.5)
    return torch.where(negative, -1.0, 1.0).double()


# The tables below are cached per device: copying one to a GPU in a training step would wait for it.
@cache
def _has_direction(device: torch.device) -> Tensor:
    return torch.tensor([name in SIGNED for name in OPERATIONS], device=device)


@cache
def magnitudes(
    *, shear: float, translate: float, rotate: float, colour: float, posterize: int, device: torch.device, bins: int
) -> Tensor:
    """Each operation's magnitudes, float64 `[operations, bins]`, from none to the largest.

    Args:
        shear: The largest tangent.
        translate: The largest shift in pixels.
        rotate: The largest angle in degrees.
        colour: The largest change of brightness, colour, contrast and sharpness.
        posterize: The largest number of dropped bits.
        device: The device to put the table on.
        bins: Number of magnitudes.
    """
    largest = dict(zip(MOVES, (shear, shear, translate, translate, rotate), strict=True))
    largest |= dict.fromkeys(BLENDS, colour)
    rows = {name: torch.linspace(0.0, value, bins) for name, value in largest.items()}
    rows["Posterize"] = (8 - torch.arange(bins) / ((bins - 1) / posterize)).round()
    rows["Solarize"] = torch.linspace(1.0, 0.0, bins)
    return torch.stack([rows.get(name, torch.zeros(bins)) for name in OPERATIONS]).double().to(device)


def standard_magnitudes(side: int, device: torch.device, bins: int = BINS) -> Tensor:
    """The magnitudes of AutoAugment and RandAugment for images of `side` pixels, see `magnitudes`."""
    return magnitudes(
        shear=0.3, translate=150 / 331 * side, rotate=30.0, colour=0.9, posterize=4, device=device, bins=bins
    )


def wide_magnitudes(device: torch.device) -> Tensor:
    """TrivialAugment's wide search space (Müller and Hutter 2021, table 1), see `magnitudes`."""
    return magnitudes(shear=0.99, translate=32.0, rotate=135.0, colour=0.99, posterize=6, device=device, bins=BINS)


@cache
def _policies(side: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """AutoAugment's operations (indices into `OPERATIONS`), probabilities and magnitudes, each `[policies, 2]`."""
    names, probabilities, steps = (
        [[operation[column] for operation in policy] for policy in CIFAR10_POLICIES] for column in range(3)
    )
    operations = torch.tensor([[OPERATIONS.index(str(name)) for name in pair] for pair in names], device=device)
    table = standard_magnitudes(side, device, AUTOAUGMENT_BINS)
    return operations, torch.tensor(probabilities, device=device), table[operations, torch.tensor(steps, device=device)]
