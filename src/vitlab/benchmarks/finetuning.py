"""Fine-tuning steps beside those of the notebook that this project replaces."""

from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch.utils.data import DataLoader
from torchvision import transforms

from vitlab.benchmarks.loops import augmented, composed, this_device, training
from vitlab.benchmarks.pil_images import PILImages
from vitlab.benchmarks.process import InItsOwnProcess
from vitlab.benchmarks.variant import Sections, Variant, Work, endless, timed
from vitlab.compat import silence_libraries
from vitlab.config.instantiate import build, build_network
from vitlab.data import ImageDataModule
from vitlab.experiment import load_data, resolve, weights_to_start_from


def finetuning(work: Work) -> Sections:
    """The notebook's loop, and vitlab's path in float32 and bfloat16, each with both kinds of attention."""
    config, device = work.config, this_device()
    config = resolve(config, weights_to_start_from(config))
    data = load_data(config)
    variants: dict[str, Variant] = {"notebook, float32": InItsOwnProcess(_notebook_of, list(work.overrides))}
    for dtype in (torch.float32, torch.bfloat16):
        for fused in (True, False):
            name = f"vitlab, {str(dtype).removeprefix('torch.')}, {'fused' if fused else 'plain'} attention"
            node = config.model.copy()
            node.fused_attention = fused
            network = build_network(node).to(device)
            optimizer = build(config.optimizer, "optimizer")
            variants[name] = training(network, augmented(data, device), optimizer, device=device, dtype=dtype)
    return {"fine-tuning steps, images/s": variants}


def _notebook_of(overrides: Sequence[str]) -> Variant:
    silence_libraries()
    config = composed(overrides)
    config = resolve(config, weights_to_start_from(config))
    return _notebook(config, load_data(config), this_device())


def _notebook(config: DictConfig, data: ImageDataModule, device: torch.device) -> Variant:
    size = config.data.image_size
    transform = transforms.Compose(
        [
            transforms.Resize(size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )
    images = PILImages(data.splits["train"], transform)
    loader: DataLoader[Any] = DataLoader(images, config.data.batch_size, shuffle=True, num_workers=2)
    network = timm.create_model(config.model.name, num_classes=config.data.num_classes).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    batches = endless(loader)

    def loop(steps: int) -> int:
        count, correct = 0, 0
        for _ in range(steps):
            images, labels = next(batches)
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            logits = network(images)
            loss = F.cross_entropy(logits, labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item()  # it waits for the device in every step, as the notebook does
            correct += int((logits.argmax(dim=1) == labels).sum().item())
            count += len(labels)
        return count

    return timed(loop)
