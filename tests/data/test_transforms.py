import pytest
import timm
import torch
from data.modules import NEUTRAL
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.functional import to_pil_image

from vitlab.data import SyntheticDataModule
from vitlab.data.counter_rng import CounterRNG
from vitlab.data.decoding import to_square
from vitlab.data.transforms import BatchTransform, Normalize, RandomCrop, RandomHorizontalFlip, Resize


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def draws() -> CounterRNG:
    return CounterRNG(seed=0, epoch=3, index=torch.arange(100, 164))


def test_crop_equals_torchvision_s_pad_and_crop_at_the_same_place(images: Tensor, draws: CounterRNG) -> None:
    crop = RandomCrop(4)
    expected = [
        v2.functional.crop(v2.functional.pad(image, [4]), int(top), int(left), 32, 32)
        for image, (top, left) in zip(images, crop.offsets(draws, 0), strict=True)
    ]
    assert torch.equal(crop(images, draws, 0), torch.stack(expected))


def test_crop_reaches_every_offset_about_equally_often() -> None:
    offsets = RandomCrop(4).offsets(CounterRNG(0, 0, torch.arange(81_000)), 0)
    counts = torch.bincount(offsets[:, 0] * 9 + offsets[:, 1], minlength=81)
    assert len(counts) == 81
    assert ((counts - 1000).abs() < 160).all()  # five standard deviations


def test_flip_mirrors_some_images_and_leaves_the_others(images: Tensor, draws: CounterRNG) -> None:
    flipped = RandomHorizontalFlip(0.5)(images, draws, 0)
    mirrored = v2.functional.horizontal_flip(images)
    chosen = draws.uniform(0, 1)[:, 0] < 0.5
    assert 16 < chosen.sum() < 48
    assert torch.equal(flipped[chosen], mirrored[chosen])
    assert torch.equal(flipped[~chosen], images[~chosen])


def test_an_alternating_flip_shows_the_other_side_each_time_an_image_comes_again(images: Tensor) -> None:
    flip, index = RandomHorizontalFlip(0.5, alternating=True), torch.arange(100, 164)
    epochs = [flip(images, CounterRNG(0, epoch, index), 1) for epoch in range(3)]
    assert torch.equal(epochs[0], RandomHorizontalFlip(0.5)(images, CounterRNG(0, 0, index), 1))  # drawn, as ever
    assert torch.equal(epochs[1], epochs[0].flip(-1))
    assert torch.equal(epochs[2], epochs[0])
    again = torch.ones_like(index)
    assert torch.equal(flip(images, CounterRNG(0, 0, index, again), 1), epochs[1])
    assert torch.equal(flip(images, CounterRNG(0, 1, index, again), 1), epochs[0])


def test_flip_and_crop_take_their_extremes(images: Tensor, draws: CounterRNG) -> None:
    assert torch.equal(RandomHorizontalFlip(0.0)(images, draws, 0), images)
    assert torch.equal(RandomHorizontalFlip(1.0)(images, draws, 0), images.flip(-1))
    assert torch.equal(RandomCrop(0)(images, draws, 0), images)


def test_normalize_equals_torchvision_s(images: Tensor) -> None:
    mean, std = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]
    expected = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])(images)
    torch.testing.assert_close(Normalize(mean, std)(images), expected)


def test_resize_equals_pillow_s_within_rounding() -> None:
    ramp = torch.linspace(0, 255, 32)
    smooth = torch.stack([ramp.expand(32, 32), ramp.expand(32, 32).T, (ramp + ramp.view(-1, 1)) / 2]).to(torch.uint8)
    pillow = Image.fromarray(smooth.permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC)
    ours = Resize(224, "bicubic")(smooth.unsqueeze(0))[0]
    assert (ours.int() - v2.functional.pil_to_tensor(pillow).int()).abs().max() <= 1
    shrunk = torch.from_numpy(to_square(pillow, 32))
    assert (Resize(32, "bicubic")(ours.unsqueeze(0))[0].int() - shrunk.int()).abs().max() <= 2


def test_unknown_interpolation_is_refused() -> None:
    with pytest.raises(ValueError, match="interpolation=cubic is unknown"):
        Resize(32, "cubic")


def test_a_batch_is_augmented_image_by_image(images: Tensor, draws: CounterRNG) -> None:
    transform = BatchTransform(
        [RandomCrop(4), RandomHorizontalFlip(0.5)],
        image_size=32,
        interpolation="bicubic",
        mean=[0.5] * 3,
        std=[0.25] * 3,
    )
    together = transform(images, draws)
    half = transform(images[32:], CounterRNG(draws.seed, draws.epoch, draws.index[32:]))
    assert torch.equal(together[32:], half)
    same = transform(images[:1].expand(64, -1, -1, -1), draws)
    assert len(torch.unique(same.flatten(1), dim=0)) > 40  # one image, 64 places in the data set: as many draws
    assert torch.equal(transform(images), Normalize([0.5] * 3, [0.25] * 3)(images))  # evaluation: nothing is drawn


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_224.augreg2_in21k_ft_in1k", "deit3_small_patch16_224.fb_in1k", "resnet18.tv_in1k"]
)
def test_the_images_of_pretrained_weights_are_those_of_timm(name: str) -> None:
    """timm's own evaluation transform without its crop: the image is brought straight to its size."""
    facts = timm.models.get_pretrained_cfg(name)
    known = timm.data.resolve_data_config(pretrained_cfg=facts.to_dict())
    theirs = timm.data.create_transform(**{**known, "crop_pct": 1.0})
    source = SyntheticDataModule(**{**NEUTRAL, "train_images": 60, "test_images": 20, "noise": 0.06, "data_seed": 0})
    images = source.load().test.pick(slice(None))
    noise = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = torch.cat([images, noise])
    expected = torch.stack([theirs(to_pil_image(image)) for image in images])
    ours = BatchTransform(
        [],
        image_size=known["input_size"][1],
        interpolation=known["interpolation"],
        mean=known["mean"],
        std=known["std"],
    )(images)
    assert ours.shape == (30, 3, 224, 224)
    levels = (ours - expected).abs() * torch.tensor(known["std"]).view(-1, 1, 1) * 255
    assert levels.max() < 2.01  # grey levels, one for each of the two roundings of a bicubic resize
    assert levels.mean() < 0.01
