"""Batch transforms on the device: flip, crop, erase, mix, resize, normalise.

Each image gets its own random numbers, except for mixing; torchvision's transforms draw once for all images of a batch.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from vitlab.compat import precise_dtype
from vitlab.data.counter_rng import CounterRNG, fork_batch_rng

Argument = TypeVar("Argument", Tensor, CounterRNG)

ATTEMPTS = 10  # to draw a box that fits, as in torchvision


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


class RandomHorizontalFlip(nn.Module):
    """Mirror each image `[B, C, H, W]` (any dtype) with probability `p`.

    `alternating` draws only in the first epoch and then flips each image every time it is used again, so that two
    epochs show both sides (Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", section 3.6).
    """

    def __init__(self, p: float, alternating: bool = False) -> None:
        super().__init__()
        self.p = p
        self.alternating = alternating

    def forward(self, images: Tensor, rng: CounterRNG, op_index: int) -> Tensor:
        if self.alternating:
            chosen = rng.of_first_epoch().uniform(op_index, 1)[:, 0] < self.p
            times = rng.epoch if rng.repetitions is None else rng.epoch + rng.repetitions
            chosen = chosen ^ (times % 2 == 1)
        else:
            chosen = rng.uniform(op_index, 1)[:, 0] < self.p
        return apply_where(chosen, lambda some, _: some.flip(-1), images, rng)


class RandomVerticalFlip(nn.Module):
    """Turn each image `[B, C, H, W]` (any dtype) upside down with probability `p`."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, images: Tensor, rng: CounterRNG, op_index: int) -> Tensor:
        chosen = rng.uniform(op_index, 1)[:, 0] < self.p
        return apply_where(chosen, lambda some, _: some.flip(-2), images, rng)


class RandomCrop(nn.Module):
    """Pad each image `[B, C, H, W]` (any dtype) by `padding` black pixels and crop its size at a random position."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding

    def offsets(self, rng: CounterRNG, op_index: int) -> Tensor:
        """Top and left of each image's crop in the padded image, int64 `[B, 2]` in [0, 2 * padding]."""
        return (rng.uniform(op_index, 2) * (2 * self.padding + 1)).long()

    def forward(self, images: Tensor, rng: CounterRNG, op_index: int) -> Tensor:
        height, width = images.shape[-2:]
        offsets = self.offsets(rng, op_index)
        # A view of all crops, [B, C, top, left, height, width]: choosing one for each image copies whole rows.
        crops = F.pad(images, [self.padding] * 4).unfold(2, height, 1).unfold(3, width, 1)
        return crops[torch.arange(len(images), device=images.device), :, offsets[:, 0], offsets[:, 1]]


def draw_boxes(
    uniform: Tensor, area: Sequence[float], aspect: Sequence[float], height: int, width: int, *, whole: bool
) -> Tensor:
    """Draw a box in each image, int64 `[B, 4]`: top, left, height and width; height 0 if no attempt fits.

    Args:
        uniform: Random numbers in [0, 1), `[B, 2 * ATTEMPTS + 2]`, as precise as the device has them.
        area: Smallest and largest fraction of the image of `height` x `width` that the box covers.
        aspect: Smallest and largest height / width of the box.
        whole: Whether the box may be as high or wide as the image.
    """
    areas = height * width * (area[0] + uniform[:, :ATTEMPTS] * (area[1] - area[0]))
    low, high = math.log(aspect[0]), math.log(aspect[1])
    aspects = (low + uniform[:, ATTEMPTS:-2] * (high - low)).exp()
    sizes = torch.stack([(areas * aspects).sqrt(), (areas / aspects).sqrt()], dim=-1).round().long()  # [B, ATTEMPTS, 2]
    fits = (sizes[..., 0] < height + whole) & (sizes[..., 1] < width + whole) & (sizes.amin(dim=-1) >= whole)
    first = fits.byte().argmax(dim=1)
    size = sizes[torch.arange(len(sizes), device=sizes.device), first] * fits.any(dim=1, keepdim=True)
    top = uniform[:, -2] * (height - size[:, 0] + 1)
    left = uniform[:, -1] * (width - size[:, 1] + 1)
    return torch.cat([torch.stack([top, left], dim=1).long(), size], dim=1)


def _precise(uniform: Tensor) -> Tensor:
    return uniform.to(precise_dtype(uniform.device))


def resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Replace the pixels of each image, uint8 `[B, C, H, W]`, by weighted sums, rounded: `[B, C, h, w]`.

    `rows`, `[B, h, H]`, and `columns`, `[B, w, W]`, hold each image's weights, which sum to 1.
    """
    result = rows.unsqueeze(1) @ images.float() @ columns.transpose(1, 2).unsqueeze(1)
    return result.round_().clamp_(0, 255).to(torch.uint8)


class RandomResizedCrop(nn.Module):
    """Crop a random box of each image, uint8 `[B, C, H, W]`, and resize it to `[B, C, H, W]`, bilinear and antialiased.

    Szegedy et al. 2015, "Going Deeper with Convolutions", section 6.

    Args:
        scale: Smallest and largest fraction of the image that the box covers.
        ratio: Smallest and largest width / height of the box.
    """

    def __init__(self, scale: Sequence[float], ratio: Sequence[float]) -> None:
        super().__init__()
        if not (0 < scale[0] <= scale[1] <= 1 and 0 < ratio[0] <= ratio[1]):
            raise ValueError(
                f"RandomResizedCrop: scale={scale} must ascend from above 0 to 1, ratio={ratio} from above 0"
            )
        self.scale = scale
        self.ratio = ratio

    def boxes(self, rng: CounterRNG, op_index: int, height: int, width: int) -> Tensor:
        """Top, left, height and width of each image's box, int64 `[B, 4]`; without a fit a box in the centre."""
        uniform, aspect = _precise(rng.uniform(op_index, 2 * ATTEMPTS + 2)), (1 / self.ratio[1], 1 / self.ratio[0])
        boxes = draw_boxes(uniform, self.scale, aspect, height, width, whole=True)
        tall, wide = min(height, round(width * aspect[1])), min(width, round(height / aspect[0]))
        centre = (height - tall) // 2, (width - wide) // 2, tall, wide
        fits = boxes[:, 2] > 0
        return torch.stack(
            [torch.where(fits, box, c) for box, c in zip(boxes.unbind(dim=1), centre, strict=True)], dim=1
        )

    def forward(self, images: Tensor, rng: CounterRNG, op_index: int) -> Tensor:
        boxes = self.boxes(rng, op_index, *images.shape[-2:])
        rows, columns = (self._weights(boxes[:, i], boxes[:, i + 2], images.shape[i - 2]) for i in (0, 1))
        return resample(images, rows, columns)

    def _weights(self, start: Tensor, length: Tensor, side: int) -> Tensor:
        """Weights of a line's `side` pixels in each pixel of its part, resized to `side`: `[B, side, side]`."""
        pixels = torch.arange(side, device=start.device)
        start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
        step = length.float() / side
        distance = pixels + 0.5 - (start + (pixels.view(-1, 1) + 0.5) * step)
        inside = (pixels >= start) & (pixels < start + length)
        weights = (1 - distance.abs() / step.clamp(min=1)).clamp(min=0) * inside
        return weights / weights.sum(dim=2, keepdim=True)


class RandomErasing(nn.Module):
    """Fill a box of an image with noise (Zhong et al. 2020, "Random Erasing Data Augmentation", algorithm 1).

    As in the paper, noise values are from 0 to 255, for which it acts on uint8 images, before the normalisation.

    Args:
        p: Fraction of the images.
        area: Smallest and largest fraction of the image that the box covers, from 0 to 1.
        aspect: Smallest and largest ratio of the box's height to its width, above 0.
    """

    def __init__(self, p: float, area: Sequence[float], aspect: Sequence[float]) -> None:
        super().__init__()
        if not (0 <= p <= 1 and 0 <= area[0] <= area[1] <= 1 and 0 < aspect[0] <= aspect[1]):
            raise ValueError(
                f"RandomErasing: p={p} must be 0 to 1, area={list(area)} ascending from 0 to 1, and "
                f"aspect={list(aspect)} ascending and above 0"
            )
        self.p = p
        self.area = area
        self.aspect = aspect

    def forward(self, images: Tensor, rng: CounterRNG, op_index: int) -> Tensor:
        """uint8 `[B, 3, H, W]` -> the same."""
        if not self.p:
            return images
        chosen = rng.uniform(op_index, 1)[:, 0] < self.p
        return apply_where(chosen, partial(self._erase, op_index=op_index), images, rng)

    def boxes(self, rng: CounterRNG, op_index: int, height: int, width: int) -> Tensor:
        """Top, left, height and width of each image's box, int64 `[B, 4]`; height 0 if no attempt fits."""
        uniform = _precise(rng.uniform(op_index, 1 + 2 * ATTEMPTS + 2)[:, 1:])
        return draw_boxes(uniform, self.area, self.aspect, height, width, whole=False)

    def _erase(self, images: Tensor, rng: CounterRNG, op_index: int) -> Tensor:
        height, width = images.shape[-2:]
        top, left, tall, wide = self.boxes(rng, op_index, height, width).view(-1, 4, 1, 1, 1).unbind(dim=1)
        rows = torch.arange(height, device=images.device).view(-1, 1)
        columns = torch.arange(width, device=images.device)
        inside = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
        # One random number has 24 bits: a value for each of three channels.
        drawn = rng.uniform(op_index, 1 + 2 * ATTEMPTS + 2 + height * width)[:, -height * width :]
        bits = (drawn * 2**24).int().view(-1, 1, height, width)
        noise = torch.cat([bits & 255, (bits >> 8) & 255, bits >> 16], dim=1).to(torch.uint8)
        return torch.where(inside, noise, images)


class Mixing(nn.Module):
    """Mix each image of a batch with the previous one: mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019).

    As in torchvision, whose transforms do the mixing, the whole batch gets the same method, weight and box.

    Args:
        p: Fraction of the batches that are mixed.
        mixup_alpha, cutmix_alpha: The weight of the image, for CutMix the fraction of the area that stays, is drawn
            from Beta(alpha, alpha). 1 is uniform; smaller values keep mostly one image.
        cutmix_share: Fraction of the mixed batches that get CutMix; the others get mixup.
        off_share: Fraction of the run, at its end, without mixing.
    """

    def __init__(
        self, *, p: float, mixup_alpha: float, cutmix_alpha: float, cutmix_share: float, off_share: float
    ) -> None:
        super().__init__()
        if not (min(p, cutmix_share, off_share) >= 0 and max(p, cutmix_share, off_share) <= 1):
            raise ValueError(f"Mixing: p={p}, cutmix_share={cutmix_share} and off_share={off_share} must be 0 to 1")
        if min(mixup_alpha, cutmix_alpha) <= 0:
            raise ValueError(f"Mixing: mixup_alpha={mixup_alpha} and cutmix_alpha={cutmix_alpha} must be above 0")
        self.p = p
        self.cutmix_share = cutmix_share
        self.off_share = off_share
        self.mixup = v2.MixUp(alpha=float(mixup_alpha))  # torchvision accepts no integers
        self.cutmix = v2.CutMix(alpha=float(cutmix_alpha))

    def is_on(self, progress: float) -> bool:
        """Whether batches may be mixed after this fraction of the run."""
        return progress < 1 - self.off_share

    def forward(
        self, images: Tensor, labels: Tensor, *, classes: int, seed: int, epoch: int, number: int
    ) -> tuple[Tensor, Tensor]:
        """Mix float images `[B, 3, H, W]` and int64 labels `[B]`, which become float32 `[B, classes]`.

        The run's seed, the epoch and the batch's number in it decide all random numbers, also whether the batch is
        mixed; otherwise it is returned as it is.
        """
        with fork_batch_rng(seed, epoch, number):
            mix = self._draw_kind()
            if mix is None:
                return images, labels
            mixed: tuple[Tensor, Tensor] = mix(images, F.one_hot(labels, classes).float())
        return mixed

    def _draw_kind(self) -> v2.MixUp | v2.CutMix | None:
        mixes, cuts = torch.rand(2).tolist()
        if mixes >= self.p:
            return None
        return self.cutmix if cuts < self.cutmix_share else self.mixup


def main_class(labels: Tensor) -> Tensor:
    """int64 `[B]`: the labels, or for mixed labels (float `[B, classes]`) the class with the largest weight."""
    return labels.argmax(dim=1) if labels.is_floating_point() else labels


class Resize(nn.Module):
    """Resize images `[B, C, h, w]`, float or uint8 (rounded), to `[B, C, size, size]`, antialiased."""

    def __init__(self, size: int, interpolation: str) -> None:
        super().__init__()
        try:
            self.interpolation = v2.InterpolationMode(interpolation)
        except ValueError:
            raise ValueError(f"interpolation={interpolation} is unknown; use bilinear or bicubic") from None
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        return tvf.resize(images, [self.size, self.size], interpolation=self.interpolation, antialias=True)


class Normalize(nn.Module):
    """uint8 images `[B, C, H, W]` -> float32: scale to [0, 1], subtract `mean`, divide by `std` (per channel)."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        # In place on one copy: half the time of (x / 255 - mean) / std for a batch of 224 px images on a CPU.
        return images.to(torch.float32, copy=True).sub_(255 * self.mean).div_(255 * self.std)


class BatchTransform(nn.Module):
    """Augment, resize and normalise a batch, between memory and model.

    Augmentations, called as `(images, rng, op_index)`, act on the stored size: there they cost least, and a padding of
    4 pixels means the same for every `image_size` (side of the model's input in pixels). `interpolation` is "bilinear"
    or "bicubic"; `mean` and `std` are per channel, on the scale [0, 1].
    """

    def __init__(
        self,
        augmentations: Sequence[nn.Module],
        *,
        image_size: int,
        interpolation: str,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.augmentations = nn.ModuleList(augmentations)
        self.resize = Resize(image_size, interpolation)
        self.normalize = Normalize(mean, std)

    def forward(self, images: Tensor, rng: CounterRNG | None = None) -> Tensor:
        """uint8 `[B, 3, h, w]` -> float32 `[B, 3, image_size, image_size]`; without `rng`, no augmentation."""
        if rng is not None:
            for op_index, augmentation in enumerate(self.augmentations):
                images = augmentation(images, rng, op_index)
        return self.normalize(self.resize(images))
