"""Batch transforms of colours and sharpness: colour jitter, grayscale, blur.

They take and return uint8 images `[B, 3, H, W]`; each image gets its own random numbers.
"""

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tvf

from vitlab.data.counter_rng import CounterRNG
from vitlab.data.random_augment import adjust_brightness, adjust_colour, adjust_contrast
from vitlab.data.transforms import apply_where, resample


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the colours of each image by a fraction of the colour circle, `[B]`; value and saturation stay."""
    red, green, blue = (images.float() / 255).unbind(dim=1)
    value, low = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    chroma = value - low
    divisor = torch.where(chroma > 0, chroma, 1.0)
    hue = torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    hue = torch.where(value == red, (green - blue) / divisor, hue) + 6 * shift.float().view(-1, 1, 1)
    sixths = torch.stack([(hue + start).remainder(6) for start in (5, 3, 1)], dim=1)
    drop = torch.minimum(sixths, 4 - sixths).clamp(0, 1)
    return ((value.unsqueeze(1) - chroma.unsqueeze(1) * drop) * 255.999).to(torch.uint8)  # torchvision's rounding


ADJUSTMENTS = (adjust_brightness, adjust_contrast, adjust_colour, adjust_hue)


class ColorJitter(nn.Module):
    """Change brightness, contrast, saturation and hue of a fraction `p` of the images, in random order.

    Args:
        p: Fraction of the images.
        brightness, contrast, saturation: Largest changes x: factors are drawn from 1 - x (0 if negative) to 1 + x.
        hue: Largest turn, as a fraction of the colour circle, at most 0.5.
    """

    def __init__(self, p: float, brightness: float, contrast: float, saturation: float, hue: float) -> None:
        super().__init__()
        self.p = p
        self.largest = brightness, contrast, saturation, hue

    def draw(self, rng: CounterRNG, op_index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Which images change, bool `[B]`; the order of the four adjustments, int64 `[B, 4]`; their strengths,
        `[B, 4]`, where 0 changes nothing."""
        uniform = rng.uniform(op_index, 9)
        strengths = [max(-1.0, -x) + (x - max(-1.0, -x)) * uniform[:, 5 + i] for i, x in enumerate(self.largest)]
        return uniform[:, 0] < self.p, uniform[:, 1:5].argsort(dim=1), torch.stack(strengths, dim=1)

    def forward(self, images: Tensor, rng: CounterRNG, op_index: int) -> Tensor:
        chosen, order, strengths = self.draw(rng, op_index)
        for step in range(4):
            for number, adjust in enumerate(ADJUSTMENTS):
                if self.largest[number]:
                    images = apply_where(chosen & (order[:, step] == number), adjust, images, strengths[:, number])
        return images


class RandomGrayscale(nn.Module):
    """Turn a fraction `p` of the images grey."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, images: Tensor, rng: CounterRNG, op_index: int) -> Tensor:
        chosen = rng.uniform(op_index, 1)[:, 0] < self.p
        return torch.where(chosen.view(-1, 1, 1, 1), tvf.rgb_to_grayscale(images, num_output_channels=3), images)


class GaussianBlur(nn.Module):
    """Blur a fraction `p` of the images.

    Args:
        p: Fraction of the images.
        kernel_size: Side of the kernel in pixels, odd.
        sigma: Smallest and largest standard deviation of the kernel, in pixels.
    """

    def __init__(self, p: float, kernel_size: int, sigma: tuple[float, float]) -> None:
        super().__init__()
        if kernel_size % 2 == 0 or not 0 < sigma[0] <= sigma[1]:
            raise ValueError(
                f"GaussianBlur: kernel_size={kernel_size} must be odd, sigma={sigma} ascending and above 0"
            )
        self.p = p
        self.reach = kernel_size // 2
        self.sigma = sigma

    def draw(self, rng: CounterRNG, op_index: int) -> tuple[Tensor, Tensor]:
        """Which images change, bool `[B]`, and the standard deviation of each kernel, `[B]`."""
        uniform = rng.uniform(op_index, 2)
        return uniform[:, 0] < self.p, self.sigma[0] + uniform[:, 1] * (self.sigma[1] - self.sigma[0])

    def forward(self, images: Tensor, rng: CounterRNG, op_index: int) -> Tensor:
        chosen, sigma = self.draw(rng, op_index)
        return apply_where(chosen, self._blur, images, sigma)

    def _blur(self, images: Tensor, sigma: Tensor) -> Tensor:
        rows, columns = (self._kernels(side, sigma) for side in images.shape[-2:])
        return resample(images, rows, columns)

    def _kernels(self, side: int, sigma: Tensor) -> Tensor:
        """Weights of the pixels of a line in each blurred pixel, mirrored at its ends: `[B, side, side]`."""
        offsets = torch.arange(-self.reach, self.reach + 1, device=sigma.device)
        pixels = torch.arange(side, device=sigma.device)
        source = (pixels.view(-1, 1) + offsets).abs()
        source = side - 1 - (side - 1 - source).abs()  # [side, kernel_size]
        weights = (-0.5 * (offsets / sigma.view(-1, 1)).square()).softmax(dim=1)  # [B, kernel_size]
        return torch.einsum("bk,okp->bop", weights, (source.unsqueeze(2) == pixels).float())
