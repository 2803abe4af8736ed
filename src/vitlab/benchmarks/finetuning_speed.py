"""Compare fine-tuning steps with the loop of the notebook that vitlab replaces."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision import transforms

from vitlab.benchmarks.input_speed import PILImages
from vitlab.benchmarks.measurement import DEVICE, Sections, Setup, Variant, compose_config, endless, load, timed
from vitlab.benchmarks.training_loop import training_steps
from vitlab.compat import silence_libraries


def sections(setup: Setup) -> Sections:
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
    config = compose_config(overrides)
    config, data = load(config)
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
