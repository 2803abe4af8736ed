from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from models.test_vision_transformer import SMALL
from test_classifier import make, trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from vitlab.callbacks import Throughput, throughput
from vitlab.data import Batch
from vitlab.models import VisionTransformer
from vitlab.models.execution import forward_flops, known_peak, peak_flops


class Clock:
    """A fake clock, which only the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def loader(clock: Clock, count: int, seconds: float) -> DataLoader[Any]:
    class Slow(IterableDataset[Batch]):
        def __iter__(self) -> Iterator[Batch]:
            for _ in range(count):
                clock.now += seconds
                yield Batch(torch.rand(2, 3, 32, 32), torch.tensor([0, 1]), torch.tensor([0, 1]))

        def __len__(self) -> int:
            return count

    return DataLoader(Slow(), batch_size=None)


def test_speed_and_data_wait_follow_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(throughput, "perf_counter", clock)
    monkeypatch.setattr(throughput, "peak_flops", lambda device, precision: 1e9)

    class Network(VisionTransformer):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) > 1:  # a step, not the count of its operations
                clock.now += 3.0
            return super().forward(images)

    network = Network(**SMALL)
    classifier = make(network, num_classes=SMALL["num_classes"], optimizer=partial(torch.optim.SGD, lr=0.1))
    run = trainer(callbacks=[Throughput()], val_check_interval=2)
    run.fit(classifier, loader(clock, 4, seconds=1.0), loader(clock, 1, seconds=50.0))
    figures = {name: float(value) for name, value in run.callback_metrics.items()}
    assert figures["images_per_second"] == pytest.approx(8 / 16)  # validation is left out
    assert figures["data_wait"] == pytest.approx(4 / 16)
    flops = forward_flops(VisionTransformer(**SMALL), torch.zeros(1, 3, 32, 32))
    assert figures["mfu"] == pytest.approx(3 * flops * 0.5 / 1e9)
    assert 0.1 < figures["memory_gib"] < 100


def test_the_peak_is_that_of_dense_matrix_products_in_half_precision() -> None:
    for name, tera in (
        *(("NVIDIA H200", 989.4), ("NVIDIA H100 80GB HBM3", 989.4), ("NVIDIA H100 PCIe", 756.5), ("NVIDIA L40S", 362)),
        *(("NVIDIA GH200 480GB", 989.4), ("NVIDIA A100-SXM4-40GB", 312), ("Tesla T4", 65), ("NVIDIA A40", 149.7)),
        *(("Tesla V100-SXM2-32GB", 125), ("Tesla V100-PCIE-16GB", 112), ("NVIDIA GeForce RTX 4090", 165.2)),
    ):
        assert known_peak(name) == tera * 1e12
    for name in (
        *(
            "NVIDIA GeForce GTX 1080",
            "NVIDIA RTX A4000",
            "NVIDIA RTX A400",
            "NVIDIA RTX A3000 Laptop GPU",
            "NVIDIA T400",
        ),
        *("NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "NVIDIA A10G", "NVIDIA H20"),
    ):
        assert known_peak(name) is None
    assert peak_flops(torch.device("cpu"), "bf16-mixed") is None
    assert peak_flops(torch.device("cuda"), "32-true") is None
