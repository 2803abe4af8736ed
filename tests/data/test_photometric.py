"""Batched crops, colours and blur give the same result as torchvision's on each image with the same parameters."""

from collections.abc import Callable

import pytest
import torch
from data.test_random_augment import make_images
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from vitlab.data import ColorJitter, GaussianBlur, RandomGrayscale, RandomResizedCrop, RandomVerticalFlip
from vitlab.data.counter_rng import CounterRNG
from vitlab.data.photometric import adjust_hue

COUNT = 64
SCALE, RATIO = (0.08, 1.0), (0.75, 1.3333)
THEIRS: list[Callable[[Tensor, float], Tensor]] = [
    lambda image, strength: tvf.adjust_brightness(image, 1 + strength),
    lambda image, strength: tvf.adjust_contrast(image, 1 + strength),
    lambda image, strength: tvf.adjust_saturation(image, 1 + strength),
    tvf.adjust_hue,
]


@pytest.fixture
def images() -> Tensor:
    return make_images(COUNT)


@pytest.fixture
def rng() -> CounterRNG:
    return CounterRNG(seed=3, epoch=2, indices=torch.arange(50, 50 + COUNT))


def assert_close(result: Tensor, expected: Tensor, levels: int = 1, share: float = 1e-3) -> None:
    """Only a few values, between two grey levels, may differ."""
    different = (result.int() - expected.int()).abs()
    assert different.max() <= levels
    assert (different > 0).float().mean() < share


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize(("scale", "ratio"), [(SCALE, RATIO), ((0.9, 1.0), (3.0, 4.0))])  # the second never fits
def test_resized_crops(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], rng: CounterRNG
) -> None:
    images = tvf.resize(make_images(COUNT), list(size))
    crop = RandomResizedCrop(scale, ratio)
    boxes = crop.boxes(rng, 1, *size)
    expected = [
        # In float: of uint8 images torch rounds also between rows and columns.
        tvf.resized_crop(image.float(), *box, size=list(size), antialias=True).round().to(torch.uint8)
        for image, box in zip(images, boxes.tolist(), strict=True)
    ]
    assert_close(crop(images, rng, 1), torch.stack(expected), share=3e-3)


@pytest.mark.parametrize(("scale", "ratio"), [(SCALE, RATIO), ((0.6, 1.0), (0.4, 2.5))])
def test_resized_crops_have_torchvision_s_distribution(scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    torch.manual_seed(0)
    oracle, image = v2.RandomResizedCrop(32, scale, ratio), torch.zeros(3, 32, 24)
    drawn = [oracle.make_params([image]) for _ in range(3000)]
    theirs = torch.tensor([[d["top"], d["left"], d["height"], d["width"]] for d in drawn])
    ours = RandomResizedCrop(scale, ratio).boxes(CounterRNG(0, 0, torch.arange(3000)), 0, 32, 24)
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 0.01
    assert (ours[:, :2] + ours[:, 2:] <= torch.tensor([32, 24])).all()
    assert (ours[:, 2:] > 0).all()


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.07, 0.5])
def test_hue(shift: float, images: Tensor) -> None:
    images[0] = 77  # grey has no hue
    images[1, 1] = images[1, 0]  # two channels share the largest value
    result = adjust_hue(images, torch.full((COUNT,), shift))
    assert_close(result, tvf.adjust_hue(images, shift))


def test_colour_jitter(images: Tensor, rng: CounterRNG) -> None:
    jitter = ColorJitter(0.8, brightness=0.4, contrast=1.5, saturation=0.4, hue=0.1)
    chosen, order, strengths = jitter.draw(rng, 2)
    assert 0.6 < chosen.float().mean() < 0.95
    assert len(torch.unique(order, dim=0)) > 15  # of 24
    assert (strengths.amin(dim=0) >= torch.tensor([-0.4, -1.0, -0.4, -0.1])).all()
    assert (strengths.amax(dim=0) <= torch.tensor([0.4, 1.5, 0.4, 0.1])).all()
    expected = images.clone()
    for row in chosen.nonzero().flatten().tolist():
        for number in order[row].tolist():
            expected[row] = THEIRS[number](expected[row], float(strengths[row, number]))
    # A grey level that is rounded otherwise moves on through the next adjustments.
    assert_close(jitter(images, rng, 2), expected, levels=8, share=0.01)
    assert torch.equal(ColorJitter(1.0, 0, 0, 0, 0)(images, rng, 2), images)


def test_colour_jitter_s_factors_have_torchvision_s_distribution() -> None:
    torch.manual_seed(0)
    oracle = v2.ColorJitter(0.4, 1.5, 0.3, 0.1)
    drawn = [oracle.make_params([]) for _ in range(2000)]
    _, _, strengths = ColorJitter(1.0, 0.4, 1.5, 0.3, 0.1).draw(CounterRNG(0, 0, torch.arange(2000)), 0)
    for column, key in enumerate(("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")):
        theirs = torch.tensor([float(d[key]) for d in drawn]) - float(key != "hue_factor")
        assert ks_2samp(strengths[:, column], theirs).pvalue > 0.01


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
def test_blur(kernel_size: int, images: Tensor, rng: CounterRNG) -> None:
    blur = GaussianBlur(0.5, kernel_size, (0.1, 2.0))
    chosen, sigma = blur.draw(rng, 4)
    assert 0.3 < chosen.float().mean() < 0.7
    expected = [
        tvf.gaussian_blur(image, [kernel_size] * 2, [float(s)] * 2) if used else image
        for image, s, used in zip(images, sigma, chosen, strict=True)
    ]
    assert_close(blur(images, rng, 4), torch.stack(expected))


def test_grayscale_and_vertical_flip(images: Tensor, rng: CounterRNG) -> None:
    for module, change in (
        (RandomGrayscale(0.5), lambda batch: tvf.rgb_to_grayscale(batch, 3)),
        (RandomVerticalFlip(0.5), tvf.vertical_flip),
    ):
        chosen = rng.uniform(1, 1)[:, 0] < 0.5
        assert 0.3 < chosen.float().mean() < 0.7
        result = module(images, rng, 1)
        assert torch.equal(result[chosen], change(images)[chosen])
        assert torch.equal(result[~chosen], images[~chosen])


@pytest.mark.parametrize(
    "module",
    [
        RandomResizedCrop(SCALE, RATIO),
        ColorJitter(0.8, 0.4, 0.4, 0.4, 0.1),
        GaussianBlur(0.5, 5, (0.1, 2.0)),
        RandomGrayscale(0.5),
        RandomVerticalFlip(0.5),
    ],
    ids=lambda module: type(module).__name__,
)
def test_an_image_does_not_depend_on_its_batch(module: torch.nn.Module, images: Tensor, rng: CounterRNG) -> None:
    whole = module(images, rng, 0)
    rows = torch.tensor([40, 3, 41])
    assert torch.equal(module(images[rows], rng[rows], 0), whole[rows])
    assert whole.dtype == torch.uint8
    assert whole.shape == images.shape
    assert not torch.equal(whole, module(images, CounterRNG(3, 3, rng.indices), 0))  # another epoch


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomResizedCrop((0.5, 0.1), RATIO),
        lambda: RandomResizedCrop((0.0, 1.0), RATIO),
        lambda: GaussianBlur(1.0, 4, (0.1, 2.0)),
        lambda: GaussianBlur(1.0, 3, (0.0, 2.0)),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="must"):
        make()
