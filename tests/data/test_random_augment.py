"""Batched operations give what torchvision's give for each image alone."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from vitlab.data.counter_rng import CounterRNG
from vitlab.data.random_augment import (
    BINS,
    NAMES,
    OPERATIONS,
    SIGNED,
    RandAugment,
    TrivialAugment,
    apply,
    magnitudes,
)


def pictures(count: int) -> Tensor:
    """uint8 images with edges, flat areas and noise."""
    torch.manual_seed(0)
    coarse = torch.nn.functional.interpolate(torch.rand(count, 3, 4, 4), size=32, mode="nearest")
    return ((coarse * 0.8 + torch.rand(count, 3, 32, 32) * 0.2) * 255).to(torch.uint8)


WIDE = {"shear": 0.99, "translate": 32.0, "rotate": 135.0, "colour": 0.99, "posterize": 6}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_torchvision_s(name: str) -> None:
    oracle = v2.TrivialAugmentWide()
    space = {**v2.AutoAugment._AUGMENTATION_SPACE, **v2.TrivialAugmentWide._AUGMENTATION_SPACE}[name][0](BINS, 32, 32)
    table = magnitudes(**WIDE, device=torch.device("cpu"))[OPERATIONS.index(name)]
    if space is not None:
        assert torch.equal(table.float(), space.float())
    signs = (1, -1) if name in SIGNED else (1,)
    magnitude = torch.cat([table * sign for sign in signs])
    images = pictures(len(magnitude))
    result = apply(images, torch.full((len(images),), OPERATIONS.index(name)), magnitude)
    expected = torch.stack(
        [
            oracle._apply_image_or_video_transform(image, name, float(m), interpolation="nearest", fill={})
            for image, m in zip(images, magnitude, strict=True)
        ]
    )
    different = (result.int() - expected.int()).abs()
    assert (different > 0).float().mean() < 1e-3  # a pixel between two, or a value between two levels
    if name not in ("ShearX", "ShearY", "Rotate"):
        assert different.max() <= 1


@pytest.mark.parametrize(
    "augmentation", [RandAugment(num_ops=2, magnitude=9), TrivialAugment()], ids=["rand", "trivial"]
)
def test_every_image_has_a_draw_of_its_own_that_does_not_hang_on_the_rest(augmentation: torch.nn.Module) -> None:
    images = pictures(1).expand(200, -1, -1, -1).contiguous()
    index = torch.arange(200)
    result = augmentation(images, CounterRNG(0, 3, index), 1)
    assert result.dtype == torch.uint8
    assert len(result.flatten(1).unique(dim=0)) > 50
    some = torch.tensor([150, 7, 42])
    assert torch.equal(augmentation(images[some], CounterRNG(0, 3, some), 1), result[some])
    assert not torch.equal(augmentation(images, CounterRNG(0, 4, index), 1), result)


def test_operations_and_signs_are_drawn_evenly() -> None:
    augmentation = RandAugment(num_ops=1, magnitude=BINS - 1)
    images = pictures(1).expand(7000, -1, -1, -1)
    result = augmentation(images, CounterRNG(0, 0, torch.arange(7000)), 0)
    kinds, counts = result.flatten(1).unique(dim=0, return_counts=True)
    # Ten of the operations go both ways, or come to the same both ways; four have one outcome, as has the identity.
    assert 20 <= len(kinds) <= 2 * len(NAMES)
    assert counts.min() > 150
    assert counts.sum() == 7000


def test_no_magnitude_changes_nothing() -> None:
    images = pictures(100)
    table = magnitudes(**WIDE, device=torch.device("cpu"))
    for name in NAMES[:-2]:
        operation = torch.full((100,), NAMES.index(name))
        result = apply(images, operation, table[operation, 0])
        changed = (result != images).float().mean()
        assert changed < 0.01, name  # solarize inverts white


def test_what_a_gpu_computes_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(300)
    draws = CounterRNG(0, 0, torch.arange(300))
    expected = TrivialAugment()(images, draws, 0)

    def everywhere(chosen: Tensor, change: object, images: Tensor, argument: Tensor) -> Tensor:
        return torch.where(chosen.view(-1, 1, 1, 1), change(images, argument), images)  # type: ignore[operator]

    monkeypatch.setattr("vitlab.data.random_augment.where", everywhere)
    assert torch.equal(TrivialAugment()(images, draws, 0), expected)
