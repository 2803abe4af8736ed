"""Compare batches and fine-tuning with loops that load images through Pillow."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image

from vitlab.benchmarks.measurement import (
    DEVICE,
    Sections,
    Setup,
    Variant,
    compose_config,
    endless,
    load,
    timed,
    training_batches,
    training_steps,
)
from vitlab.compat import silence_libraries
from vitlab.data import ImageDataModule, RandAugment, RandomCrop, RandomHorizontalFlip, TrivialAugment
from vitlab.data.arrays import ImageArrays
from vitlab.data.transforms import BatchTransform

LARGE = 224  # px, the input of most pretrained models
PAUSE = 2.0  # seconds


def input_sections(setup: Setup) -> Sections:
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


def finetuning_sections(setup: Setup) -> Sections:
    """Compare the notebook's loop with vitlab's steps in float32 and in bfloat16."""
    config, data = load(setup.config)
    # A fresh process, in which vitlab has not changed how torch uses memory and threads.
    process = ProcessPoolExecutor(1, get_context("spawn"))
    overrides = tuple(setup.overrides)
    variants: dict[str, Variant] = {
        "notebook, float32": lambda steps: process.submit(_notebook_speed, overrides, steps).result()
    }
    for name, precision in (("float32", "32-true"), ("bfloat16", "bf16-mixed")):
        config.trainer.precision = precision
        variants[f"vitlab, {name}"] = training_steps(config, data)
    return {"fine-tuning steps, images/s": variants}


def _notebook_speed(overrides: Sequence[str], steps: int) -> float:
    return _notebook_steps(overrides)(steps)


@cache
def _notebook_steps(overrides: Sequence[str]) -> Variant:
    silence_libraries()
    config, data = load(compose_config(overrides))
    steps = [transforms.Resize(config.data.image_size), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    steps += [transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])]
    images = PILImages(data.splits["train"], transforms.Compose(steps))
    batches: Any = endless(DataLoader(images, config.data.batch_size, shuffle=True, num_workers=2))
    network = timm.create_model(config.model.name, num_classes=config.data.num_classes).to(DEVICE)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)

    def loop(steps: int) -> int:
        count, correct = 0, 0
        for _ in range(steps):
            images, labels = (tensor.to(DEVICE) for tensor in next(batches))
            optimizer.zero_grad()
            logits = network(images)
            loss = F.cross_entropy(logits, labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item()  # waits for the device in every step, as the notebook does
            correct += int((logits.argmax(dim=1) == labels).sum().item())
            count += len(labels)
        return count

    return timed(loop)
