"""Training steps on a GPU never make the host wait; tested with fake CUDA tensors."""

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics import Metric
from torchvision.transforms import v2

from vitlab.callbacks import EMA
from vitlab.classifier import ImageClassifier
from vitlab.data import (
    AutoAugment,
    Mixing,
    RandAugment,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    TrivialAugment,
    main_class,
    random_augment,
)
from vitlab.data.counter_rng import CounterRNG
from vitlab.data.transforms import BatchTransform
from vitlab.losses import CrossEntropy
from vitlab.models import VisionTransformer

MIXINGS = [
    Mixing(p=1, mixup_alpha=1.0, cutmix_alpha=1.0, cutmix_share=cutmix_share, off_share=0) for cutmix_share in (0, 1)
]


class Transfers(TorchDispatchMode):
    """Record operations that move a tensor from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            # A number in a CPU tensor is passed to a kernel as an argument, unless it is copied.
            copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
            devices = {a.device.type for a in args if isinstance(a, Tensor) and (a.dim() or copies)}
            if devices - {result.device.type}:
                self.found.append(str(func))
        return result


@pytest.fixture
def gpu() -> Iterator[FakeTensorMode]:
    caches = (random_augment.magnitudes, random_augment.has_direction, random_augment.policies)
    with FakeTensorMode() as mode:
        yield mode
    for cached in caches:
        cached.cache_clear()


def pretend(module: nn.Module) -> None:
    """Move a module's tensors to a fake GPU."""

    def moved(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")

    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(moved(parameter))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = moved(buffer)
        if isinstance(part, Metric):
            for name in part._defaults:
                setattr(part, name, moved(getattr(part, name)))


def make() -> tuple[BatchTransform, ImageClassifier]:
    transform = BatchTransform(
        [
            *(RandomCrop(4), RandomHorizontalFlip(0.5), RandomHorizontalFlip(0.5, alternating=True)),
            *(RandAugment(2, 9), TrivialAugment(), AutoAugment(), RandomErasing(0.5, (0.02, 0.4), (0.3, 3.33))),
        ],
        image_size=64,
        interpolation="bicubic",
        mean=[0.5] * 3,
        std=[0.25] * 3,
    )
    network = VisionTransformer(
        **{"image_size": 64, "patch_size": 8, "in_channels": 3, "num_classes": 10, "embed_dim": 64, "depth": 2},
        **{"num_heads": 2, "mlp_ratio": 2.0, "pool": "mean", "pos_embed": "sincos2d"},
        **{"dropout": 0.1, "attention_dropout": 0.1, "drop_path": 0.1},
    )
    return transform, ImageClassifier(network, num_classes=10, loss=CrossEntropy(0.1), seed=0)


def step(transform: BatchTransform, classifier: ImageClassifier) -> None:
    images = torch.empty(8, 3, 32, 32, dtype=torch.uint8, device="cuda")
    labels, indices, repetitions = (torch.zeros(8, dtype=torch.int64, device="cuda") for _ in range(3))
    images = transform(images, CounterRNG(0, 3, indices, repetitions))
    for mixing in MIXINGS:
        mixed, shares = mixing(images, labels, classes=10, seed=0, epoch=3, number=0)
        logits = classifier(mixed)
        loss = classifier.training_loss(logits, shares)
        classifier.losses["train_loss"].update(loss.detach(), 8)
        classifier.accuracies["train_acc"].update(logits.detach(), main_class(shares))
        classifier.evaluated["val"].update(loss, logits.detach(), labels)


def test_augmentation_forward_pass_and_metrics_do_not_wait(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    transform, classifier = make()
    # Drawn on the CPU for a whole batch, where reading it is free.
    monkeypatch.setattr("vitlab.data.transforms.fork_batch_rng", lambda *_: nullcontext())
    monkeypatch.setattr(Mixing, "_draw_kind", lambda mixing: mixing.cutmix if mixing.cutmix_share else mixing.mixup)
    monkeypatch.setattr(v2.MixUp, "make_params", lambda *_: {"lam": 0.3})
    monkeypatch.setattr(v2.CutMix, "make_params", lambda *_: {"box": (8, 8, 24, 40), "lam_adjusted": 0.7})
    request.getfixturevalue("gpu")
    pretend(transform)
    pretend(classifier)
    step(transform, classifier)  # the first call fills tables
    with Transfers() as transfers:
        step(transform, classifier)
    assert transfers.found == []


def test_weight_averaging_does_not_wait(request: pytest.FixtureRequest) -> None:
    _, classifier = make()
    average = EMA(decay=0.999, warmup=9)
    average.setup(SimpleNamespace(), classifier, "fit")  # type: ignore[arg-type]
    request.getfixturevalue("gpu")
    pretend(classifier)
    pretend(average.average)
    for step in (1, 2):
        with Transfers() as transfers:
            average.on_train_batch_end(SimpleNamespace(global_step=step), classifier)  # type: ignore[arg-type]
        assert transfers.found == []


def test_the_recorder_notices_waits(gpu: FakeTensorMode) -> None:
    images = torch.empty(8, device="cuda")
    with pytest.raises(DataDependentOutputException):
        images.sum().item()
    with Transfers() as transfers:
        images.cpu()
        torch.zeros(3).to("cuda")
        torch.tensor(3.0).to("cuda")
    assert len(transfers.found) == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_on_a_gpu_never_waits() -> None:
    transform, classifier = make()
    transform.to("cuda")
    classifier.to("cuda")
    step(transform, classifier)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(transform, classifier)
    finally:
        torch.cuda.set_sync_debug_mode("default")
