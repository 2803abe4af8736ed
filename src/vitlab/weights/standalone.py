"""A model with its preprocessing inside: uint8 images of any size to logits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitlab.data.transforms import Normalize


def _linear(distance: Tensor) -> Tensor:
    return (1 - distance).clamp(min=0)


def _cubic(distance: Tensor) -> Tensor:
    """Keys 1981, "Cubic Convolution Interpolation for Digital Image Processing", equation 4, with a = -0.5."""
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


CHECKED_AT_ONCE = 64  # images
KERNELS: Mapping[str, Callable[[Tensor], Tensor]] = {"bilinear": _linear, "bicubic": _cubic}


class SquareResize(nn.Module):
    """Crop the central square of images and resize it to `size` pixels, antialiased, by two products of matrices.

    uint8 or float `[B, 3, H, W]` -> float32 `[B, 3, size, size]`, whole numbers from 0 to 255. Pillow's
    `ImageOps.fit` and torchvision's `resize` do the same with integers, or vertically first, which rounds up to an
    eighth of the pixels to a neighbouring level. They can't be exported for images of any size; products of matrices
    can. Squares of `size` stay unchanged.
    """

    def __init__(self, size: int, interpolation: str) -> None:
        super().__init__()
        self.size = size
        self.kernel = KERNELS[interpolation]

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        side = torch.minimum(torch.scalar_tensor(height), torch.scalar_tensor(width))
        images = _round(images.float() @ self._weights(width, side).T)
        return _round(self._weights(height, side) @ images)

    def _weights(self, length: int, side: Tensor) -> Tensor:
        """Weights of a line's `length` pixels in each pixel of its central `side`, resized: `[size, length]`."""
        step = side / self.size
        start = (torch.scalar_tensor(length) - side) / 2
        centres = start + (torch.arange(self.size).view(-1, 1) + 0.5) * step
        weights = self.kernel((torch.arange(length) + 0.5 - centres).abs() / step.clamp(min=1))
        return weights / weights.sum(dim=1, keepdim=True)


def _round(images: Tensor) -> Tensor:
    return (images + 0.5).floor().clamp(0, 255)  # halves upwards, as the integers of Pillow and torchvision do


class StandaloneModel(nn.Module):
    """Preprocess as `vitlab.predict` does, and classify: uint8 images `[B, 3, H, W]` of any size, RGB -> logits and
    probabilities, float32 `[B, classes]`.

    Args:
        network: On the CPU; it is put into eval mode and frozen.
        data: That group of its run's config.
    """

    def __init__(self, network: nn.Module, data: Mapping[str, Any]) -> None:
        super().__init__()
        stored, size = data["stored_size"], data["image_size"]
        self.store = SquareResize(stored, "bicubic")  # as `decoding.to_square` does
        self.resize = nn.Identity() if size == stored else SquareResize(size, data["interpolation"])
        self.normalize = Normalize(data["mean"], data["std"])
        self.network = network
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(self.normalize(self.resize(self.store(images)))).float()
        return logits, logits.softmax(dim=1)


@dataclass(frozen=True)
class Agreement:
    """How far an exported model agrees with its run on images of the run."""

    images: int
    difference: float  # the largest of logits
    same_class: int  # images with the same most probable class

    def __str__(self) -> str:
        return (
            f"logits of {self.images:,} test images differ from the run's by at most {self.difference:.1g}, "
            f"{self.same_class:,} have the same class"
        )


@dataclass(frozen=True)
class Reference:
    """What an exported model must give."""

    model: StandaloneModel
    images: Tensor  # uint8 [N, 3, stored_size, stored_size]; none: nothing is checked
    logits: Tensor  # float32 [N, classes], the run's

    def compare(self, classify: Callable[[Tensor], Tensor], library: str) -> Agreement | None:
        """Classify the images, one of them alone, and larger oblong ones; RuntimeError if the logits differ.

        The run resizes by integers: if the model does it at all, a few pixels differ by one level of 255.
        """
        if not len(self.images):
            return None
        tolerance = 1e-3 if isinstance(self.model.resize, nn.Identity) else 5e-2
        with torch.inference_mode():
            logits = classify_all(classify, self.images)
            difference = check_logits_equal(logits, self.logits, tolerance, library)
            for other in (self.images[:1], self.images[:2].repeat(1, 1, 2, 3)):
                check_logits_equal(classify(other), self.model(other)[0], 1e-3, library)
        same = (logits.argmax(dim=1) == self.logits.argmax(dim=1)).sum().item()
        return Agreement(len(self.images), difference, int(same))


def classify_all(classify: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The logits of any number of images; nothing for none."""
    return torch.cat([classify(some) for some in torch.split(images, CHECKED_AT_ONCE)]) if len(images) else images


def check_logits_equal(given: Tensor, expected: Tensor, tolerance: float, library: str) -> float:
    """The largest difference of logits; RuntimeError if above the tolerance, relative to the largest logit above 1."""
    difference = (given - expected).abs().max().item()
    if not difference <= tolerance * max(1.0, expected.abs().max().item()):
        raise RuntimeError(f"{library}'s logits differ by {difference:.2g} from torch's: nothing was written")
    return difference
