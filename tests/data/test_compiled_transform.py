"""The augmentation compiled for a GPU: one graph for all epochs, and the same images."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from vitlab.data import (
    AutoAugment,
    ColorJitter,
    GaussianBlur,
    RandAugment,
    RandomCrop,
    RandomErasing,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomVerticalFlip,
    TrivialAugment,
)
from vitlab.data.counter_rng import CounterRNG
from vitlab.data.transforms import BatchTransform

AUGMENTATIONS = {
    "basic": [RandomCrop(4), RandomHorizontalFlip(0.5)],
    "alternating": [RandomHorizontalFlip(0.5, alternating=True), TrivialAugment()],
    "randaugment": [RandAugment(2, 9)],
    "colours": [RandomResizedCrop((0.1, 1.0), (0.75, 1.33)), ColorJitter(0.8, 0.4, 0.4, 0.4, 0.1)],
    "blurred": [RandomVerticalFlip(0.5), RandomGrayscale(0.2), GaussianBlur(0.5, 3, (0.1, 2.0))],
    "strong": [AutoAugment(), RandomErasing(0.25, (0.02, 0.4), (0.3, 3.33))],
}


def change_all(chosen: Tensor, change: Any, images: Tensor, argument: Any) -> Tensor:
    return torch.where(chosen.view(-1, 1, 1, 1), change(images, argument), images)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_one_graph_serves_all_epochs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("transforms", "random_augment", "photometric"):  # as on a GPU
        monkeypatch.setattr(f"vitlab.data.{module}.apply_where", change_all)
    augmentations: Sequence[nn.Module] = AUGMENTATIONS[name]
    transform = BatchTransform(augmentations, image_size=32, interpolation="bicubic", mean=[0.5] * 3, std=[0.25] * 3)
    torch.compiler.reset()
    graphs = CompileCounterWithBackend("eager")
    compiled = torch.compile(transform, backend=graphs, fullgraph=True, dynamic=False)
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for epoch in range(4):
        rng = CounterRNG(7, epoch, torch.arange(16) * 3)
        on_device = rng.on_device(len(augmentations))
        assert torch.equal(transform(images, on_device), transform(images, rng))
        assert torch.equal(compiled(images, on_device), transform(images, rng))
    assert graphs.frame_count == 1
    made_on_the_host = [node for node in graphs.graphs[0].graph.nodes if node.target in (torch.tensor, "to")]
    assert [node for node in made_on_the_host if "device" in str(node.args) + str(node.kwargs)] == []
