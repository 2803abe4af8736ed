"""RandAugment and TrivialAugment for whole batches: each image with operations and magnitudes of its own."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, nn

from vitlab.data import image_ops
from vitlab.data.counter_rng import CounterRNG

COLOURS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Brightness": image_ops.adjust_brightness,
    "Color": image_ops.adjust_colour,
    "Contrast": image_ops.adjust_contrast,
    "Sharpness": image_ops.adjust_sharpness,
    "Posterize": image_ops.posterize,
    "Solarize": image_ops.solarize,
    "AutoContrast": image_ops.autocontrast,
    "Equalize": image_ops.equalize,
    "Invert": image_ops.invert,
}
OPERATIONS = ("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", *COLOURS)
NAMES = OPERATIONS[:-1]  # RandAugment and TrivialAugment do not invert
SIGNED = frozenset(NAMES[1:6]) | {"Brightness", "Color", "Contrast", "Sharpness"}
BINS = 31  # steps from no to full magnitude

Argument = TypeVar("Argument", Tensor, CounterRNG)


def apply(images: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    """Applies one operation to each image.

    Args:
        images: uint8 `[B, 3, H, W]`.
        operation: int64 `[B]`, places in `OPERATIONS`.
        magnitude: float64 `[B]`, signed.
    """
    height, width = images.shape[-2:]
    moves = {
        "ShearX": image_ops.shear(magnitude, height, along=0),
        "ShearY": image_ops.shear(magnitude, width, along=1),
        "TranslateX": image_ops.translate(magnitude, along=0),
        "TranslateY": image_ops.translate(magnitude, along=1),
        "Rotate": image_ops.rotate(magnitude),
    }
    inverse = torch.zeros_like(moves["Rotate"])
    for name, move in moves.items():
        inverse = torch.where((operation == OPERATIONS.index(name)).view(-1, 1, 1), move, inverse)
    moved = (operation > 0) & (operation <= len(moves))
    images = where(moved, image_ops.transform_affinely, images, inverse)
    for name, change in COLOURS.items():
        images = where(operation == OPERATIONS.index(name), change, images, magnitude)
    return images


def where(chosen: Tensor, change: Callable[[Tensor, Argument], Tensor], images: Tensor, argument: Argument) -> Tensor:
    """Changes the chosen images (bool `[B]`); the argument has a row for each image.

    On a CPU those alone are computed. To find them out a GPU would have to wait: there all are, and thrown away.
    """
    if images.device.type != "cpu":
        return torch.where(chosen.view(-1, 1, 1, 1), change(images, argument), images)
    rows = chosen.nonzero().flatten()
    if len(rows):
        images = images.index_copy(0, rows, change(images[rows], argument[rows]))
    return images


class RandAugment(nn.Module):
    """Some operations in a row, drawn for each image, at one magnitude (Cubuk et al. 2020, "RandAugment").

    Args:
        num_ops: Operations in a row.
        magnitude: 0 (nothing) to 30.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(self, num_ops: int, magnitude: int) -> None:
        super().__init__()
        if num_ops < 1 or not 0 <= magnitude < BINS:
            raise ValueError(
                f"RandAugment: num_ops={num_ops} must be at least 1, magnitude={magnitude} 0 to {BINS - 1}"
            )
        self.num_ops = num_ops
        self.magnitude = magnitude

    def forward(self, images: Tensor, draws: CounterRNG, stream: int) -> Tensor:
        side = images.shape[-1]
        table = magnitudes(
            shear=0.3, translate=150.0 / 331.0 * side, rotate=30.0, colour=0.9, posterize=4, device=images.device
        )
        uniform = draws.uniform(stream, 2 * self.num_ops)
        for number in range(self.num_ops):
            operation = (uniform[:, 2 * number] * len(NAMES)).long()
            images = apply(
                images, operation, table[operation, self.magnitude] * sign(operation, uniform[:, 2 * number + 1])
            )
        return images


class TrivialAugment(nn.Module):
    """One operation at one magnitude, both drawn for each image (Müller and Hutter 2021, "TrivialAugment", wide)."""

    def forward(self, images: Tensor, draws: CounterRNG, stream: int) -> Tensor:
        table = wide_magnitudes(images.device)
        uniform = draws.uniform(stream, 3)
        operation = (uniform[:, 0] * len(NAMES)).long()
        magnitude = table[operation, (uniform[:, 1] * BINS).long()]
        return apply(images, operation, magnitude * sign(operation, uniform[:, 2]))


def wide_magnitudes(device: torch.device) -> Tensor:
    """TrivialAugment's wide space (Müller and Hutter 2021, table 1), as `magnitudes` gives it."""
    return magnitudes(shear=0.99, translate=32.0, rotate=135.0, colour=0.99, posterize=6, device=device)


@cache  # once a device: what is copied to a GPU in a step waits for it
def magnitudes(
    *,
    shear: float,
    translate: float,
    rotate: float,
    colour: float,
    posterize: int,
    device: torch.device,
    bins: int = BINS,
) -> Tensor:
    """Each operation's magnitudes, float64 `[operations, bins]`, from none to the largest.

    Args:
        shear: The largest tangent.
        translate: The largest move in pixels.
        rotate: The largest angle in degrees.
        colour: The largest change of brightness, colour, contrast and sharpness.
        posterize: The most bits dropped.
        device: Where the table lies.
        bins: Steps from no to full magnitude.
    """
    none = torch.zeros(bins)
    kept = (8 - torch.arange(bins) / ((bins - 1) / posterize)).round()
    rows: Sequence[Tensor] = [
        none,
        *(torch.linspace(0.0, most, bins) for most in (shear, shear, translate, translate, rotate)),
        *(torch.linspace(0.0, colour, bins) for _ in range(4)),
        kept,
        torch.linspace(1.0, 0.0, bins),
        none,
        none,
        none,
    ]
    return torch.stack(list(rows)).double().to(device)


def sign(operation: Tensor, uniform: Tensor) -> Tensor:
    """-1 for half of the draws of the operations that go both ways, else 1, float64 `[B]`."""
    negative = _signed_operations(operation.device)[operation] & (uniform < 0.5)
    return torch.where(negative, -1.0, 1.0).double()


@cache
def _signed_operations(device: torch.device) -> Tensor:
    return torch.tensor([name in SIGNED for name in OPERATIONS], device=device)
