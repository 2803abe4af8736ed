"""Training batches as vitlab makes them, beside torchvision's Pillow transforms in a DataLoader with two workers."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

from vitlab.benchmarks.loops import augmented, settle, this_device
from vitlab.benchmarks.pil_images import PILImages
from vitlab.benchmarks.variant import Sections, Variant, Work, endless, timed
from vitlab.data import ImageDataModule, RandAugment, RandomCrop, RandomHorizontalFlip, TrivialAugment
from vitlab.data.transforms import BatchTransform
from vitlab.experiment import load_data

LARGE = 224  # px, as pretrained networks take them


def input_paths(work: Work) -> Sections:
    """Crop and flip; the same with RandAugment and with TrivialAugment; the resize to 224 px."""
    data = load_data(work.config)
    size = data.splits["train"].image_shape[-1]
    crop, flip = RandomCrop(size // 8), RandomHorizontalFlip(0.5)
    pil_crop = [transforms.RandomCrop(size, padding=size // 8), transforms.RandomHorizontalFlip()]
    ours: dict[str, Sequence[nn.Module]] = {
        "RandAugment": [crop, flip, RandAugment(2, 9)],
        "TrivialAugment": [crop, flip, TrivialAugment()],
    }
    theirs = {"RandAugment": transforms.RandAugment(2, 9), "TrivialAugment": transforms.TrivialAugmentWide()}
    sections = {
        f"crop and flip, {size} px, images/s": {
            "Pillow, 2 workers": _pillow(data, pil_crop),
            "vitlab": _vitlab(data, [crop, flip], size),
        }
    }
    for name, augmentations in ours.items():
        sections[f"crop, flip and {name}, {size} px, images/s"] = {
            "Pillow, 2 workers": _pillow(data, [*pil_crop, theirs[name]]),
            "vitlab": _vitlab(data, augmentations, size),
        }
    sections[f"flip, resize to {LARGE} px, images/s"] = {
        "Pillow, 2 workers (the notebook's)": _pillow(
            data, [transforms.Resize(LARGE), transforms.RandomHorizontalFlip()]
        ),
        "vitlab, bilinear": _vitlab(data, [flip], LARGE, "bilinear"),
        "vitlab, bicubic": _vitlab(data, [flip], LARGE),
    }
    return sections


def _pillow(data: ImageDataModule, steps: list[Any]) -> Variant:
    normalize = transforms.Normalize(data.spec.mean, data.spec.std)
    images = PILImages(data.splits["train"], transforms.Compose([*steps, transforms.ToTensor(), normalize]))
    loader: DataLoader[Any] = DataLoader(
        images, data.batch_size, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True
    )
    batches = endless(loader)

    def loop(steps: int) -> int:
        return sum(len(next(batches)[1]) for _ in range(steps))

    return timed(loop, warmup=10)


def _vitlab(
    data: ImageDataModule, augmentations: Sequence[nn.Module], size: int, interpolation: str = "bicubic"
) -> Variant:
    device, spec = this_device(), data.spec
    transform = BatchTransform(
        augmentations, image_size=size, interpolation=interpolation, mean=spec.mean, std=spec.std
    )
    batches = augmented(data, device, transform)

    def loop(steps: int) -> int:
        count = sum(len(next(batches)[1]) for _ in range(steps))
        settle(device)
        return count

    return timed(loop, warmup=10)
