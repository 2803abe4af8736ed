"""The operations of AutoAugment's family on whole batches, each image with its own magnitude.

uint8 images `[N, 3, H, W]` -> the same. Each result is what torchvision's `transforms.v2.functional`, which take one
magnitude for all images, give for that image alone. A magnitude is float64 `[N]` on the images' device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf


def transform_affinely(images: Tensor, inverse: Tensor) -> Tensor:
    """Moves pixels: nearest neighbours, black where nothing is.

    Args:
        images: uint8 `[N, 3, H, W]`.
        inverse: float64 `[N, 2, 3]`: from a place in the result, in pixels from the centre, to its place in the image.
    """
    height, width = images.shape[-2:]
    x = torch.linspace((1 - width) * 0.5, (width - 1) * 0.5, width, device=images.device)
    y = torch.linspace((1 - height) * 0.5, (height - 1) * 0.5, height, device=images.device)
    places = torch.stack(
        [x.expand(height, width), y[:, None].expand(height, width), torch.ones_like(x).expand(height, width)]
    )
    theta = inverse.float().transpose(1, 2)
    theta[..., 0] /= 0.5 * width
    theta[..., 1] /= 0.5 * height
    grid = (places.flatten(1).T.expand(len(images), -1, -1) @ theta).view(-1, height, width, 2)
    return F.grid_sample(images.float(), grid, mode="nearest", align_corners=False).round_().to(torch.uint8)


def shear(magnitude: Tensor, side: int, *, along: int) -> Tensor:
    """The inverse of a shear about the corner, along the columns (0) or rows (1); for `transform_affinely`.

    Args:
        magnitude: Tangent of the angle.
        side: Of the image across, in pixels.
        along: 0 moves the rows sideways, 1 the columns up and down.
    """
    inverse = _identity(magnitude)
    inverse[:, along, 1 - along] = magnitude
    inverse[:, along, 2] = magnitude * side / 2
    return inverse


def translate(magnitude: Tensor, *, along: int) -> Tensor:
    """The inverse of a move by whole pixels, sideways (0) or down (1)."""
    inverse = _identity(magnitude)
    inverse[:, along, 2] = -magnitude.trunc()
    return inverse


def rotate(magnitude: Tensor) -> Tensor:
    """The inverse of a rotation about the centre by degrees, counter-clockwise."""
    angle = magnitude.deg2rad()
    inverse = _identity(magnitude)
    inverse[:, 0, 0], inverse[:, 0, 1] = angle.cos(), -angle.sin()
    inverse[:, 1, 0], inverse[:, 1, 1] = angle.sin(), angle.cos()
    return inverse


def adjust_brightness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Towards black (-1) or away from it; 0 leaves an image as it is, here and in the next three."""
    return _blend(images, torch.zeros_like(images[:1, :1, :1, :1]), magnitude)


def adjust_colour(images: Tensor, magnitude: Tensor) -> Tensor:
    """Towards grey or away from it."""
    return _blend(images, _grey(images), magnitude)


def adjust_contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """Towards the image's mean grey or away from it."""
    return _blend(images, _grey(images).mean(dim=(-3, -2, -1), keepdim=True), magnitude)


def adjust_sharpness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Towards a blurred image or away from it; the border stays."""
    kernel = torch.full((3, 1, 3, 3), 1 / 13, device=images.device)
    kernel[:, :, 1, 1] = 5 / 13
    result = images.float()
    inner = result[..., 1:-1, 1:-1]
    blurred = F.conv2d(result, kernel, groups=3).round_()
    inner += (blurred - inner) * (-magnitude).float().view(-1, 1, 1, 1)
    return result.clamp_(0, 255).to(torch.uint8)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keeps so many of the upper bits of each value."""
    dropped = (8 - bits.long()).view(-1, 1, 1, 1)
    return images & ((255 >> dropped) << dropped).to(torch.uint8)


def solarize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Inverts the values from a threshold on, a fraction of white."""
    threshold = (magnitude * 255).float().view(-1, 1, 1, 1)
    return torch.where(images >= threshold, 255 - images, images)


def autocontrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """Stretches each channel from black to white; there is no magnitude."""
    result: Tensor = tvf.autocontrast(images)
    return result


def equalize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Makes each channel's values about equally frequent; there is no magnitude."""
    result: Tensor = tvf.equalize(images)
    return result


def invert(images: Tensor, magnitude: Tensor) -> Tensor:
    """Black becomes white; there is no magnitude."""
    return 255 - images


def _blend(images: Tensor, others: Tensor, magnitude: Tensor) -> Tensor:
    weight = (1 + magnitude).view(-1, 1, 1, 1)
    return (images * weight.float() + others * (1 - weight).float()).clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_().unsqueeze(1)


def _identity(magnitude: Tensor) -> Tensor:
    return torch.eye(2, 3, dtype=torch.float64, device=magnitude.device).repeat(len(magnitude), 1, 1)
