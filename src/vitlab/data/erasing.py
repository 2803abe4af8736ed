"""Random erasing."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitlab.data.counter_rng import CounterRNG
from vitlab.data.random_augment import where

ATTEMPTS = 10  # to draw a box that fits, as torchvision makes them


class RandomErasing(nn.Module):
    """Fills a box of an image with noise (Zhong et al. 2020, "Random Erasing Data Augmentation", algorithm 1).

    It acts on the stored uint8 images, not on normalised ones: there its noise, each value drawn from 0 to 255 as in
    the paper, never leaves the range from black to white.

    Args:
        p: Share of the images.
        area: The least and the largest share of the image that the box takes.
        aspect: The least and the largest height of the box, in widths.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(self, p: float, area: Sequence[float], aspect: Sequence[float]) -> None:
        super().__init__()
        if not (0 <= p <= 1 and 0 <= area[0] <= area[1] <= 1 and 0 < aspect[0] <= aspect[1]):
            raise ValueError(
                f"RandomErasing: p={p} must be 0 to 1, area={list(area)} rise from 0 to 1, and aspect={list(aspect)} "
                "rise from above 0"
            )
        self.p = p
        self.area = area
        self.aspect = aspect

    def forward(self, images: Tensor, draws: CounterRNG, stream: int) -> Tensor:
        """uint8 `[B, 3, H, W]` -> the same."""
        if not self.p:
            return images
        chosen = draws.uniform(stream, 1)[:, 0] < self.p

        def erase(images: Tensor, draws: CounterRNG) -> Tensor:
            return self._erase(images, draws, stream)

        return where(chosen, erase, images, draws)

    def boxes(self, draws: CounterRNG, stream: int, height: int, width: int) -> Tensor:
        """Top, left, height and width of each image's box, int64 `[B, 4]`; no height where none was found that fits."""
        uniform = draws.uniform(stream, 1 + 2 * ATTEMPTS + 2)[:, 1:].double()
        area = height * width * (self.area[0] + uniform[:, :ATTEMPTS] * (self.area[1] - self.area[0]))
        low, high = math.log(self.aspect[0]), math.log(self.aspect[1])
        aspect = (low + uniform[:, ATTEMPTS:-2] * (high - low)).exp()
        sizes = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], dim=-1).round().long()  # [B, ATTEMPTS, 2]
        fits = (sizes[..., 0] < height) & (sizes[..., 1] < width)
        first = fits.byte().argmax(dim=1).view(-1, 1, 1).expand(-1, 1, 2)
        size = sizes.gather(1, first)[:, 0] * fits.any(dim=1, keepdim=True)
        corner = torch.stack(
            [uniform[:, -2] * (height - size[:, 0] + 1), uniform[:, -1] * (width - size[:, 1] + 1)], dim=1
        ).long()
        return torch.cat([corner, size], dim=1)

    def _erase(self, images: Tensor, draws: CounterRNG, stream: int) -> Tensor:
        height, width = images.shape[-2:]
        top, left, tall, wide = self.boxes(draws, stream, height, width).view(-1, 4, 1, 1, 1).unbind(dim=1)
        rows = torch.arange(height, device=images.device).view(-1, 1)
        columns = torch.arange(width, device=images.device)
        inside = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
        # A draw has 24 bits: a value for each of three channels.
        drawn = draws.uniform(stream, 1 + 2 * ATTEMPTS + 2 + height * width)[:, -height * width :]
        bits = (drawn * 2**24).int().view(-1, 1, height, width)
        noise = torch.cat([bits & 255, (bits >> 8) & 255, bits >> 16], dim=1).to(torch.uint8)
        return torch.where(inside, noise, images)
