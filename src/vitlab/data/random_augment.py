"""RandAugment, TrivialAugment and AutoAugment for whole batches."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from vitlab.compat import augmentation_space, autoaugment_policies
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
SIGNED = frozenset(name for name, (_, signed) in augmentation_space(v2.TrivialAugmentWide).items() if signed)
BINS = 31  # magnitudes of RandAugment and TrivialAugment, from none to the largest


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
        """uint8 `[B, 3, H, W]` -> the same."""
        uniform = rng.uniform(op_index, 3)
        operation = (uniform[:, 0] * len(NAMES)).long()
        table = magnitudes(v2.TrivialAugmentWide, images.shape[-1], images.device)
        magnitude = table[operation, (uniform[:, 1] * BINS).long()]
        return apply(images, operation, magnitude * signs(operation, uniform[:, 2]))


class AutoAugment(nn.Module):
    """Apply to each image a random one of the 25 sub-policies found for CIFAR-10 (Cubuk et al. 2019, "AutoAugment")."""

    def forward(self, images: Tensor, rng: CounterRNG, op_index: int) -> Tensor:
        """uint8 `[B, 3, H, W]` -> the same."""
        operations, probabilities, strengths = _policies(images.shape[-1], images.device)
        uniform = rng.uniform(op_index, 5)
        policy = (uniform[:, 0] * len(operations)).long()
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
def magnitudes(transform: type[nn.Module], side: int, device: torch.device, bins: int = BINS) -> Tensor:
    """The magnitudes of torchvision's RandAugment, TrivialAugmentWide or AutoAugment for images of `side` pixels.

    Returns:
        float64 `[operations, bins]`, from none to the largest; zeros for operations without a magnitude.
    """
    table = torch.zeros(len(OPERATIONS), bins, dtype=torch.float64)
    for name, (magnitudes_of, _) in augmentation_space(transform).items():
        values = magnitudes_of(bins, side, side)
        if values is not None:
            table[OPERATIONS.index(name)] = values
    return table.to(device)


@cache
def _policies(side: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """AutoAugment's operations (indices into `OPERATIONS`), probabilities and magnitudes, each `[policies, 2]`."""
    policies = autoaugment_policies(v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10))
    operations = torch.tensor([[OPERATIONS.index(name) for name, _, _ in policy] for policy in policies], device=device)
    probabilities = torch.tensor([[probability for _, probability, _ in policy] for policy in policies], device=device)
    steps = torch.tensor([[step or 0 for _, _, step in policy] for policy in policies], device=device)
    table = magnitudes(v2.AutoAugment, side, device, bins=10)
    return operations, probabilities, table[operations, steps]
