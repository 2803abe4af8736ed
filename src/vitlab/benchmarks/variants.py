"""The benchmarks: training steps, start, input and fine-tuning."""

import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import chain, repeat
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image

from vitlab.benchmarks.measurement import (
    DEVICE,
    TRAIN,
    Sections,
    Setup,
    Variant,
    compose_config,
    load,
    run_process,
    timed,
    train_speed,
    training_batches,
    training_steps,
)
from vitlab.compat import silence_libraries
from vitlab.config.instantiate import build_network
from vitlab.data import ImageDataModule, RandAugment, RandomCrop, RandomHorizontalFlip, TrivialAugment
from vitlab.data.arrays import ImageArrays
from vitlab.data.transforms import BatchTransform
from vitlab.errors import UserError
from vitlab.weights.export_formats import ARCHITECTURE, timm_arguments

LARGE = 224  # px, the input of most pretrained models
PAUSE = 2.0  # seconds


def step_sections(setup: Setup) -> Sections:
    """Compare `train.py`, in the precision that it would use, with a bare loop and timm's `train.py`."""
    config, data = load(setup.config)
    variants: dict[str, Variant] = {
        "bare loop": training_steps(config, data),
        "train.py": partial(train_speed, setup.overrides, setup.log),
    }
    if setup.command.timm_train:
        variants["timm's train.py"] = _timm_speed(setup, config, data)
    return {f"training, {config.trainer.precision}, images/s": variants}


def _timm_speed(setup: Setup, config: DictConfig, data: ImageDataModule) -> Variant:
    """Run timm's `train.py` on the same model and images, otherwise with its defaults.

    The figure is the median over the second epoch's steps except the first, in which workers start.
    """
    script = setup.command.timm_train
    if not Path(script).is_file():
        raise UserError(f"timm_train={script}: there is no such file")
    shape, spec, precision = timm_arguments(build_network(config.model)), data.spec, str(config.trainer.precision)
    del shape["in_chans"]  # follows from --input-size
    side = str(config.data.image_size)
    options = ["--model", ARCHITECTURE, "--gp", shape.pop("global_pool"), "--input-size", "3", side, side]
    options += ["--model-kwargs", *(f"{key}={value}" for key, value in shape.items())]
    options += ["--num-classes", str(len(spec.classes)), "--batch-size", str(data.batch_size)]
    options += ["--device", DEVICE.type, "--epochs", "2", "--warmup-epochs", "0", "--log-interval", "1"]
    if precision != "32-true":
        options += ["--amp", "--amp-dtype", "bfloat16" if precision.startswith("bf16") else "float16"]

    def run(steps: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            for split, count in (("train", steps * data.batch_size), ("validation", len(spec.classes))):
                _write_images(data, Path(folder) / split, count)
            output = run_process([sys.executable, script, folder, *options, f"--output={folder}/output"], log=setup.log)
        # Train: 1 [   9/10 (100%)]  Loss: ...  Time: 0.123s, 1040.60/s  (0.125s, 1020.30/s)  LR: ...
        speeds = re.findall(r"^Train: 1 .* Time: [\d.]+s,\s*([\d.]+)/s", output, re.MULTILINE)
        if not speeds:
            raise UserError(f"timm_train={script} printed no images per second of epoch 1: {output[-500:]}")
        return median(map(float, speeds[1:] or speeds))

    return run


def _write_images(data: ImageDataModule, folder: Path, count: int) -> None:
    arrays = data.splits["train"]
    for label in range(len(data.spec.classes)):
        (folder / f"{label:04d}").mkdir(parents=True)
    for row in range(count):
        index = row % len(arrays)
        to_pil_image(arrays[index]).save(folder / f"{int(arrays.labels[index]):04d}" / f"{row}.png")


class StopAtFirstStep(pl.Callback):
    """Exit the process, without any cleanup, when the first training step begins (`begins`) or ends."""

    def __init__(self, begins: bool) -> None:
        self.begins = begins

    def on_train_batch_start(self, *_: Any) -> None:
        if self.begins:
            os._exit(0)

    def on_train_batch_end(self, *_: Any) -> None:
        os._exit(0)


def start_sections(setup: Setup) -> Sections:
    """Time the help, the composed config and the first step; the reference is importing the libraries."""
    train, stop = [sys.executable, TRAIN, *setup.overrides], "+callbacks.stop."
    first = [*train, f"{stop}_target_={__name__}.StopAtFirstStep"]
    commands = {
        "importing the libraries": [sys.executable, "-c", "import torch, torchvision, timm, pytorch_lightning"],
        "--help": [sys.executable, TRAIN, "--help"],
        "--cfg job": [*train, "--cfg", "job"],
        "first step begins": [*first, f"{stop}begins=true"],
        "first step ends": [*first, f"{stop}begins=false"],
        "first step ends, preflight=off": [*first, f"{stop}begins=false", "preflight=off"],
    }
    return {
        "seconds from Enter": {
            name: partial(_process_seconds, command, setup.log) for name, command in commands.items()
        }
    }


def _process_seconds(command: Sequence[str], log: Path | None, steps: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        directory = [f"hydra.run.dir={folder}/run"] if command[1] == TRAIN else []
        started = time.perf_counter()
        run_process([*command[:2], *directory, *command[2:]], log=log)
        return time.perf_counter() - started


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
    loader = DataLoader(images, data.batch_size, shuffle=True, **options)
    return _batches(chain.from_iterable(repeat(loader)))


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
    import timm  # here, as the processes that the start is timed with import this module too

    silence_libraries()
    config, data = load(compose_config(overrides))
    steps = [transforms.Resize(config.data.image_size), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    steps += [transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])]
    images = PILImages(data.splits["train"], transforms.Compose(steps))
    loader = DataLoader(images, config.data.batch_size, shuffle=True, num_workers=2)
    batches = chain.from_iterable(repeat(loader))
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
