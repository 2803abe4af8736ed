"""Fine-tuning steps beside those of the notebook that this project replaces."""

from contextlib import nullcontext
from typing import Any

import timm
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

from vitlab.benchmarks.pil_images import PILImages
from vitlab.benchmarks.variant import Sections, Variant, endless
from vitlab.config.building import build, build_network
from vitlab.data import ImageDataModule
from vitlab.data.draws import Draws
from vitlab.data.loader import ResidentLoader, epoch_order
from vitlab.experiment import adopt_facts, build_data, weights_to_start_from


def finetuning(config: DictConfig) -> Sections:
    """The notebook's loop, and vitlab's path in float32 and bfloat16, each with both kinds of attention."""
    weights_to_start_from(config)
    data = build_data(config)
    data.prepare_data()
    data.setup()
    adopt_facts(config, data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    variants = {"notebook, float32": _notebook(config, data, device)}
    for precision in (torch.float32, torch.bfloat16):
        for fused in (True, False):
            name = f"vitlab, {str(precision).removeprefix('torch.')}, {'fused' if fused else 'plain'} attention"
            variants[name] = _vitlab(config, data, device, precision, fused)
    return {"fine-tuning steps": variants}


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

    def run(steps: int) -> int:
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

    return run


def _vitlab(
    config: DictConfig, data: ImageDataModule, device: torch.device, precision: torch.dtype, fused: bool
) -> Variant:
    node = config.model.copy()
    node.fused_attention = fused
    network: nn.Module = build_network(node).to(device)
    optimizer = build(config.optimizer, "optimizer")(network.parameters())
    arrays = data.splits["train"]
    loader = ResidentLoader(
        arrays,
        lambda: epoch_order(len(arrays), 0, 0),
        config.data.batch_size,
        drop_last=True,
        device=device,
        rank=0,
        world_size=1,
    )
    transform = data.transform.to(device)
    batches = endless(loader)

    def run(steps: int) -> int:
        count = 0
        for _ in range(steps):
            images, labels, index = next(batches)
            images = transform(images, Draws(0, 0, index))
            with torch.autocast(device.type, precision) if precision != torch.float32 else nullcontext():
                loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            count += len(labels)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return count

    return run
