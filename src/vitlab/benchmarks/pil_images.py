"""Images through Pillow, one by one: what the benchmarks compare with."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import to_pil_image

from vitlab.data.arrays import ImageArrays


class PILImages(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's CIFAR10 serves them: each through PIL and a transform, in a worker process."""

    def __init__(self, arrays: ImageArrays, transform: Callable[[Any], Tensor]) -> None:
        self.arrays = arrays
        self.transform = transform

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(to_pil_image(self.arrays[index])), int(self.arrays.labels[index])
