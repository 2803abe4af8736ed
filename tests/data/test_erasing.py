"""Random erasing draws its boxes as torchvision does."""

import pytest
import torch
from data.test_random_augment import pictures
from scipy.stats import ks_2samp
from torchvision.transforms import v2

from vitlab.data import RandomErasing
from vitlab.data.counter_rng import CounterRNG

AREA, ASPECT = (0.02, 0.4), (0.3, 3.33)


@pytest.mark.parametrize(("area", "aspect"), [(AREA, ASPECT), ((0.5, 0.9), (0.2, 2.0))])  # of these many do not fit
def test_the_boxes_have_torchvision_s_distribution(area: tuple[float, float], aspect: tuple[float, float]) -> None:
    torch.manual_seed(0)
    oracle = v2.RandomErasing(1.0, scale=area, ratio=aspect)
    image = torch.zeros(3, 32, 24)
    drawn = [oracle.make_params([image]) for _ in range(3000)]
    theirs = torch.tensor([[d["i"], d["j"], d["h"], d["w"]] for d in drawn if d["v"] is not None])
    ours = RandomErasing(1.0, area, aspect).boxes(CounterRNG(0, 0, torch.arange(3000)), 0, 32, 24)
    ours = ours[ours[:, 2] > 0]
    assert abs(len(ours) - len(theirs)) < 120
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 0.01
    areas = [boxes[:, 2] * boxes[:, 3] for boxes in (ours, theirs)]
    assert ks_2samp(*areas).pvalue > 0.01
    assert (ours[:, 0] + ours[:, 2] <= 32).all()
    assert (ours[:, 1] + ours[:, 3] <= 24).all()


def test_the_box_is_noise_and_the_rest_stays() -> None:
    images, draws = pictures(2000), CounterRNG(0, 1, torch.arange(2000))
    erasing = RandomErasing(0.25, AREA, ASPECT)
    result, boxes = erasing(images, draws, 3), erasing.boxes(draws, 3, 32, 32)
    chosen = draws.uniform(3, 1)[:, 0] < 0.25
    assert 400 < chosen.sum() < 600
    assert torch.equal(result[~chosen], images[~chosen])
    noise = []
    for image, before, (top, left, height, width) in zip(
        result[chosen], images[chosen], boxes[chosen].tolist(), strict=True
    ):
        box = (slice(None), slice(top, top + height), slice(left, left + width))
        noise.append(image[box].flatten(1))
        image[box] = before[box]
        assert torch.equal(image, before)
    values = torch.cat(noise, dim=1).long()
    for channel in values:
        counts = torch.bincount(channel, minlength=256) / len(channel)
        assert (counts * 256 - 1).abs().max() < 0.3
    assert (torch.corrcoef(values.double()) - torch.eye(3)).abs().max() < 0.02


def test_an_image_is_erased_alike_in_any_batch_and_anew_in_each_epoch() -> None:
    images, index = pictures(300), torch.arange(300)
    erasing = RandomErasing(0.5, AREA, ASPECT)
    result = erasing(images, CounterRNG(0, 0, index), 0)
    some = torch.tensor([250, 7, 42, 43])
    assert torch.equal(erasing(images[some], CounterRNG(0, 0, some), 0), result[some])
    assert not torch.equal(erasing(images, CounterRNG(0, 1, index), 0), result)
    assert torch.equal(RandomErasing(0.0, AREA, ASPECT)(images, CounterRNG(0, 0, index), 0), images)


@pytest.mark.parametrize("wrong", [{"p": 1.1}, {"area": (0.4, 0.1)}, {"aspect": (0, 1)}])
def test_what_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="RandomErasing: p="):
        RandomErasing(**{"p": 0.5, "area": AREA, "aspect": ASPECT, **wrong})
