"""Image operations of AutoAugment's family on batches, one magnitude per image.

Each takes uint8 images `[N, 3, H, W]` and a magnitude, float64 `[N]` on the images' device, and returns uint8 images.
The result for each image is that of torchvision's `transforms.v2.functional`, which take one magnitude for all images.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from vitlab.data.counter_rng import CounterRNG

Argument = TypeVar("Argument", Tensor, CounterRNG)


def apply_where(
    chosen: Tensor, change: Callable[[Tensor, Argument], Tensor], images: Tensor, argument: Argument
) -> Tensor:
    """Apply `change(images, argument)` to the chosen images (bool `[B]`); the argument has one row per image.

    A CPU computes only the chosen images. A GPU computes all: to find the chosen ones, it would have to wait.
    """
    if images.device.type != "cpu":
        return torch.where(chosen.view(-1, 1, 1, 1), change(images, argument), images)
    rows = chosen.nonzero().flatten()
    if len(rows):
        images = images.index_copy(0, rows, change(images[rows], argument[rows]))
    return images


def transform_affinely(images: Tensor, inverse: Tensor) -> Tensor:
    """Move pixels of uint8 images `[N, 3, H, W]`: nearest neighbour, black outside the image.

    `inverse`, float64 `[N, 2, 3]`, maps a position in the result, in pixels from the centre, to one in the image.
    """
    height, width = images.shape[-2:]
    x = torch.linspace((1 - width) * 0.5, (width - 1) * 0.5, width, device=images.device)
    y = torch.linspace((1 - height) * 0.5, (height - 1) * 0.5, height, device=images.device)
    ones = torch.ones_like(x)
    positions = torch.stack([t.expand(height, width) for t in (x, y[:, None], ones)])
    theta = inverse.float().transpose(1, 2)
    theta[..., 0] /= 0.5 * width
    theta[..., 1] /= 0.5 * height
    grid = (positions.flatten(1).T.expand(len(images), -1, -1) @ theta).view(-1, height, width, 2)
    return F.grid_sample(images.float(), grid, mode="nearest", align_corners=False).round_().to(torch.uint8)


def invert_affine(
    shear_x: Tensor, shear_y: Tensor, shift_x: Tensor, shift_y: Tensor, degrees: Tensor, height: int, width: int
) -> Tensor:
    """The inverse of a shear, a shift or a rotation, for `transform_affinely`; all but one of an image's are zero.

    Shears are tangents and keep the top left corner; shifts, to the right and down, are in pixels, truncated to whole
    ones; the rotation about the centre is counter-clockwise.
    """
    angle = degrees.deg2rad()
    x = [angle.cos(), shear_x - angle.sin(), shear_x * height / 2 - shift_x.trunc()]
    y = [shear_y + angle.sin(), angle.cos(), shear_y * width / 2 - shift_y.trunc()]
    return torch.stack([torch.stack(x, dim=1), torch.stack(y, dim=1)], dim=1)


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
