"""Compare vitlab's training batches with torchvision's Pillow transforms."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image

from vitlab.benchmarks.measurement import Sections, Setup, Variant, endless, load, timed
from vitlab.benchmarks.training_loop import training_batches
from vitlab.data import ImageDataModule, RandAugment, RandomCrop, RandomHorizontalFlip, TrivialAugment
from vitlab.data.arrays import ImageArrays
from vitlab.data.transforms import BatchTransform

LARGE = 224  # px, the input of most pretrained models
PAUSE = 2.0  # seconds


def sections(setup: Setup) -> Sections:
    """Compare crop and flip, these with RandAugment or TrivialAugment, and flip with a resize to 224 px."""
    _, data = load(setup.config)
    size = data.splits["train"].image_shape[-1]
    flip, pil_flip = RandomHorizontalFlip(0.5), transforms.RandomHorizontalFlip()
    crop, pil_crop = RandomCrop(size // 8), transforms.RandomCrop(size, padding=size // 8)
    more: dict[str, tuple[list[Any], list[nn.Module]]] = {
        "crop and flip": ([], []),
        "crop, flip and RandAugment": ([transforms.RandAugment(2, 9)], [RandAugment(2, 9)]),
        "crop, flip and TrivialAugment": ([transforms.TrivialAugmentWide()], [TrivialAugment()]),
    }
    sections = {
        f"{name}, {size} px, images/s": {
            "Pillow, 2 workers": _pillow(data, [pil_crop, pil_flip, *theirs]),
            "vitlab": _vitlab(data, [crop, flip, *ours], size, "bicubic"),
        }
        for name, (theirs, ours) in more.items()
    }
    sections[f"flip, resize to {LARGE} px, images/s"] = {
        "Pillow, 2 workers, bilinear": _pillow(data, [transforms.Resize(LARGE), pil_flip]),
        "vitlab, bilinear": _vitlab(data, [flip], LARGE, "bilinear"),
        "vitlab, bicubic": _vitlab(data, [flip], LARGE, "bicubic"),
    }
    return sections


class PILImages(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's CIFAR10 returns them: one at a time, through Pillow and a transform."""

    def __init__(self, arrays: ImageArrays, transform: Callable[[Any], Tensor]) -> None:
        self.arrays, self.transform = arrays, transform

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(to_pil_image(self.arrays[index])), int(self.arrays.labels[index])


def _pillow(data: ImageDataModule, steps: Sequence[Any]) -> Variant:
    normalize = transforms.Normalize(data.spec.mean, data.spec.std)
    images = PILImages(data.splits["train"], transforms.Compose([*steps, transforms.ToTensor(), normalize]))
    options: dict[str, Any] = {"num_workers": 2, "drop_last": True, "persistent_workers": True}
    return _batches(endless(DataLoader(images, data.batch_size, shuffle=True, **options)))


def _vitlab(data: ImageDataModule, steps: Sequence[nn.Module], size: int, interpolation: str) -> Variant:
    mean, std = data.spec.mean, data.spec.std
    transform = BatchTransform(steps, image_size=size, interpolation=interpolation, mean=mean, std=std)
    return _batches(training_batches(data, transform))


def _batches(batches: Iterator[tuple[Tensor, Tensor]]) -> Variant:
    # The warm-up takes more batches than two workers have ready.
    return timed(lambda steps: sum(len(next(batches)[1]) for _ in range(steps)), warmup=10, pause=PAUSE)
