"""Batched operations give the same result as torchvision's on each image alone."""

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
    AutoAugment,
    RandAugment,
    TrivialAugment,
    apply,
    magnitudes,
)

# Cubuk et al. 2019, "AutoAugment", table 7, found on CIFAR-10: two operations in a row, each with its probability and
# its magnitude bin.
CIFAR10_POLICIES: tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...] = (
    (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
    (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
)
AUTOAUGMENT = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)


def make_images(count: int) -> Tensor:
    """uint8 images with edges, flat areas and noise."""
    torch.manual_seed(0)
    coarse = torch.nn.functional.interpolate(torch.rand(count, 3, 4, 4), size=32, mode="nearest")
    return ((coarse * 0.8 + torch.rand(count, 3, 32, 32) * 0.2) * 255).to(torch.uint8)


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_equals_torchvision_s(name: str) -> None:
    oracle = v2.TrivialAugmentWide()
    space = {**v2.AutoAugment._AUGMENTATION_SPACE, **v2.TrivialAugmentWide._AUGMENTATION_SPACE}[name][0](BINS, 32, 32)
    table = magnitudes(v2.TrivialAugmentWide, 32, torch.device("cpu"))[OPERATIONS.index(name)]
    if space is not None:
        assert torch.equal(table.float(), space.float())
    signs = (1, -1) if name in SIGNED else (1,)
    magnitude = torch.cat([table * sign for sign in signs])
    images = make_images(len(magnitude))
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
    ("augmentation", "fewest"),
    [(RandAugment(num_ops=2, magnitude=9), 50), (TrivialAugment(), 50), (AutoAugment(), 40)],
    ids=["rand", "trivial", "auto"],
)
def test_each_image_has_its_own_random_numbers_whatever_its_batch(augmentation: torch.nn.Module, fewest: int) -> None:
    images = make_images(1).expand(200, -1, -1, -1).contiguous()
    index = torch.arange(200)
    result = augmentation(images, CounterRNG(0, 3, index), 1)
    assert result.dtype == torch.uint8
    assert len(result.flatten(1).unique(dim=0)) > fewest
    some = torch.tensor([150, 7, 42])
    assert torch.equal(augmentation(images[some], CounterRNG(0, 3, some), 1), result[some])
    assert not torch.equal(augmentation(images, CounterRNG(0, 4, index), 1), result)


def test_operations_and_signs_are_drawn_evenly() -> None:
    augmentation = RandAugment(num_ops=1, magnitude=BINS - 1)
    images = make_images(1).expand(7000, -1, -1, -1)
    result = augmentation(images, CounterRNG(0, 0, torch.arange(7000)), 0)
    kinds, counts = result.flatten(1).unique(dim=0, return_counts=True)
    # Ten operations have two directions, which may give the same result; four and the identity have one result.
    assert 20 <= len(kinds) <= 2 * len(NAMES)
    assert counts.min() > 150
    assert counts.sum() == 7000


def test_magnitude_zero_changes_nothing() -> None:
    images = make_images(100)
    table = magnitudes(v2.TrivialAugmentWide, 32, torch.device("cpu"))
    for name in NAMES[:-2]:
        operation = torch.full((100,), NAMES.index(name))
        result = apply(images, operation, table[operation, 0])
        changed = (result != images).float().mean()
        assert changed < 0.01, name  # solarize inverts white


def test_computing_all_images_as_on_a_gpu_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_images(300)
    rng = CounterRNG(0, 0, torch.arange(300))
    expected = TrivialAugment()(images, rng, 0)

    def everywhere(chosen: Tensor, change: object, images: Tensor, argument: Tensor) -> Tensor:
        return torch.where(chosen.view(-1, 1, 1, 1), change(images, argument), images)  # type: ignore[operator]

    monkeypatch.setattr("vitlab.data.random_augment.apply_where", everywhere)
    assert torch.equal(TrivialAugment()(images, rng, 0), expected)


def test_autoaugment_has_the_paper_s_cifar10_policies() -> None:
    # torchvision's table is private: a changed one would change every recorded seed.
    theirs = tuple(tuple((name, p, step or 0) for name, p, step in policy) for policy in AUTOAUGMENT._policies)
    assert theirs == CIFAR10_POLICIES


def test_autoaugment_equals_torchvision_s_on_the_same_random_numbers() -> None:
    count = 1500
    images, rng = make_images(count), CounterRNG(0, 0, torch.arange(count))
    uniform = rng.uniform(2, 5)
    policies = (uniform[:, 0] * 25).long()
    assert torch.bincount(policies, minlength=25).min() > 30
    expected = images.clone()
    for row, policy in enumerate(policies.tolist()):
        for position, (name, probability, step) in enumerate(AUTOAUGMENT._policies[policy]):
            if uniform[row, 2 * position + 1] >= probability:
                continue
            space, signed = v2.AutoAugment._AUGMENTATION_SPACE[name]
            strengths = space(10, 32, 32)
            strength = 0.0 if strengths is None else float(strengths[step])
            if signed and uniform[row, 2 * position + 2] < 0.5:
                strength *= -1
            expected[row] = AUTOAUGMENT._apply_image_or_video_transform(
                expected[row], name, strength, interpolation="nearest", fill={}
            )
    result = AutoAugment()(images, rng, 2)
    assert (result != expected).float().mean() < 1e-3  # a pixel between two, or a value between two levels
    assert 0.1 < (result == images).flatten(1).all(dim=1).float().mean() < 0.3  # for some, neither operation was drawn
