"""Ten classes of drawn shapes, a data set without a download."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitlab.data.arrays import Dataset, ImageArrays
from vitlab.data.datamodule import ImageDataModule

# A shape is a signed distance in its own coordinates: negative inside, with a radius of about one.
Shape = Callable[[Tensor, Tensor], Tensor]


def _polygon(corners: int) -> Shape:
    sector = 2 * math.pi / corners

    def distance(x: Tensor, y: Tensor) -> Tensor:
        angle = torch.remainder(torch.atan2(y, x), sector) - sector / 2
        return torch.hypot(x, y) * angle.cos() - math.cos(sector / 2)

    return distance


def _star(x: Tensor, y: Tensor) -> Tensor:
    sector = 2 * math.pi / 5
    angle = (torch.remainder(torch.atan2(y, x), sector) - sector / 2).abs() / (sector / 2)  # 1 at a tip, 0 between tips
    return torch.hypot(x, y) - (0.4 + 0.7 * angle**1.5)


def _box(x: Tensor, y: Tensor, half_width: float, half_height: float) -> Tensor:
    return torch.maximum(x.abs() - half_width, y.abs() - half_height)


SHAPES: dict[str, Shape] = {
    "disc": lambda x, y: torch.hypot(x, y) - 0.9,
    "ring": lambda x, y: (torch.hypot(x, y) - 0.75).abs() - 0.22,
    "square": _polygon(4),
    "frame": lambda x, y: (_box(x, y, 0.65, 0.65)).abs() - 0.18,
    "triangle": _polygon(3),
    "star": _star,
    "cross": lambda x, y: torch.minimum(_box(x, y, 1.0, 0.3), _box(x, y, 0.3, 1.0)),
    "crescent": lambda x, y: torch.maximum(torch.hypot(x, y) - 1.0, 0.85 - torch.hypot(x - 0.6, y)),
    "two_bars": lambda x, y: _box(x.abs() - 0.6, y, 0.25, 1.0),
    "two_dots": lambda x, y: torch.hypot(x.abs() - 0.65, y) - 0.4,
}


class SyntheticDataModule(ImageDataModule):
    """Shapes of random colour, position, size and rotation on random backgrounds, with noise.

    Args:
        train_images, test_images: Number of images; the classes take turns.
        noise: Standard deviation of the pixel noise, on the scale [0, 1].
        data_seed: The images depend only on this.
        **shared: See `ImageDataModule`.
    """

    def __init__(self, *, train_images: int, test_images: int, noise: float, data_seed: int, **shared: Any) -> None:
        super().__init__(**shared)
        if min(train_images, test_images) < len(SHAPES):
            raise ValueError(f"train_images and test_images must be at least {len(SHAPES)}, one per class")
        self.train_images = train_images
        self.test_images = test_images
        self.noise = noise
        self.data_seed = data_seed

    def load(self) -> Dataset:
        size = self.stored_size or self.image_size
        splits = []
        for number, (split, count) in enumerate([("train", self.train_images), ("test", self.test_images)]):
            generator = torch.Generator().manual_seed(2 * self.data_seed + number)
            labels = torch.arange(count) % len(SHAPES)
            images = draw_shapes(labels, size, self.noise, generator)
            splits.append(ImageArrays.of(images, labels, [f"{split}/{i}" for i in range(count)]))
        return Dataset(splits[0], splits[1], list(SHAPES))


def draw_shapes(labels: Tensor, size: int, noise: float, generator: torch.Generator) -> Tensor:
    """Draw each label's shape at random: int64 `[N]`, indices into `SHAPES` -> uint8 `[N, 3, size, size]`."""
    count = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    radius = uniform(0.45, 0.7, 1, 1)
    centre_x, centre_y = uniform(-0.35, 0.35, 1, 1), uniform(-0.35, 0.35, 1, 1)
    turn = uniform(-0.6, 0.6, 1, 1)
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    dx, dy = axis.view(1, 1, -1) - centre_x, axis.view(1, -1, 1) - centre_y
    x = (turn.cos() * dx + turn.sin() * dy) / radius
    y = (turn.cos() * dy - turn.sin() * dx) / radius
    distance = torch.empty(count, size, size)
    for label, shape in enumerate(SHAPES.values()):
        chosen = labels == label
        distance[chosen] = shape(x[chosen], y[chosen])
    # Antialiasing: a soft edge of half a pixel on either side.
    cover = (0.5 - distance * radius * size / 2).clamp(0, 1).unsqueeze(1)

    # Soft clouds between two colours.
    first, second = uniform(0, 0.6, 3, 1, 1), uniform(0, 0.6, 3, 1, 1)
    clouds = F.interpolate(uniform(0, 1, 1, 4, 4), size=(size, size), mode="bicubic", align_corners=True)
    ground = first + clouds.clamp(0, 1) * (second - first)
    colour = uniform(0.55, 1.0, 3, 1, 1)
    image = ground + cover * (colour - ground)
    image += noise * torch.randn(image.shape, generator=generator)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)
