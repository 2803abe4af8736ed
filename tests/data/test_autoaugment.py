"""AutoAugment is torchvision's, image by image."""

import torch
from data.test_random_augment import pictures
from torchvision.transforms import v2

from vitlab.data import AutoAugment
from vitlab.data.autoaugment import CIFAR10_POLICIES
from vitlab.data.counter_rng import CounterRNG

ORACLE = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)


def test_the_policies_are_those_found_on_cifar10() -> None:
    theirs = tuple(tuple((name, p, step or 0) for name, p, step in policy) for policy in ORACLE._policies)
    assert theirs == CIFAR10_POLICIES


def test_on_the_same_draws_it_is_torchvision_s() -> None:
    count = 1500
    images, draws = pictures(count), CounterRNG(0, 0, torch.arange(count))
    uniform = draws.uniform(2, 5)
    policies = (uniform[:, 0] * 25).long()
    assert torch.bincount(policies, minlength=25).min() > 30
    expected = images.clone()
    for row, policy in enumerate(policies.tolist()):
        for place, (name, probability, step) in enumerate(ORACLE._policies[policy]):
            if uniform[row, 2 * place + 1] >= probability:
                continue
            space, signed = v2.AutoAugment._AUGMENTATION_SPACE[name]
            strengths = space(10, 32, 32)
            strength = 0.0 if strengths is None else float(strengths[step])
            if signed and uniform[row, 2 * place + 2] < 0.5:
                strength *= -1
            expected[row] = ORACLE._apply_image_or_video_transform(
                expected[row], name, strength, interpolation="nearest", fill={}
            )
    result = AutoAugment()(images, draws, 2)
    assert (result != expected).float().mean() < 1e-3  # a pixel between two, or a value between two levels
    assert 0.1 < (result == images).flatten(1).all(dim=1).float().mean() < 0.3  # of some, nothing was to be done


def test_every_image_has_a_draw_of_its_own_that_does_not_hang_on_the_rest() -> None:
    images, index = pictures(1).expand(200, -1, -1, -1).contiguous(), torch.arange(200)
    result = AutoAugment()(images, CounterRNG(0, 3, index), 1)
    assert len(result.flatten(1).unique(dim=0)) > 40
    some = torch.tensor([150, 7, 42])
    assert torch.equal(AutoAugment()(images[some], CounterRNG(0, 3, some), 1), result[some])
    assert not torch.equal(AutoAugment()(images, CounterRNG(0, 4, index), 1), result)
