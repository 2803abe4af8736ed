import pytest
import timm
import torch
from data.modules import NEUTRAL
from data.test_random_augment import make_images
from PIL import Image
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.functional import to_pil_image

from vitlab.data import SyntheticDataModule
from vitlab.data.counter_rng import CounterRNG
from vitlab.data.decoding import to_square
from vitlab.data.transforms import BatchTransform, Normalize, RandomCrop, RandomErasing, RandomHorizontalFlip, Resize

AREA, ASPECT = (0.02, 0.4), (0.3, 3.33)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def rng() -> CounterRNG:
    return CounterRNG(seed=0, epoch=3, indices=torch.arange(100, 164))


def test_crop_equals_torchvision_s_pad_and_crop_at_the_same_position(images: Tensor, rng: CounterRNG) -> None:
    crop = RandomCrop(4)
    expected = [
        v2.functional.crop(v2.functional.pad(image, [4]), int(top), int(left), 32, 32)
        for image, (top, left) in zip(images, crop.offsets(rng, 0), strict=True)
    ]
    assert torch.equal(crop(images, rng, 0), torch.stack(expected))


def test_crop_reaches_every_offset_about_equally_often() -> None:
    offsets = RandomCrop(4).offsets(CounterRNG(0, 0, torch.arange(81_000)), 0)
    counts = torch.bincount(offsets[:, 0] * 9 + offsets[:, 1], minlength=81)
    assert len(counts) == 81
    assert ((counts - 1000).abs() < 160).all()  # five standard deviations


def test_flip_mirrors_some_images_and_leaves_the_others(images: Tensor, rng: CounterRNG) -> None:
    flipped = RandomHorizontalFlip(0.5)(images, rng, 0)
    mirrored = v2.functional.horizontal_flip(images)
    chosen = rng.uniform(0, 1)[:, 0] < 0.5
    assert 16 < chosen.sum() < 48
    assert torch.equal(flipped[chosen], mirrored[chosen])
    assert torch.equal(flipped[~chosen], images[~chosen])


def test_an_alternating_flip_shows_the_other_side_at_each_use(images: Tensor) -> None:
    flip, index = RandomHorizontalFlip(0.5, alternating=True), torch.arange(100, 164)
    epochs = [flip(images, CounterRNG(0, epoch, index), 1) for epoch in range(3)]
    assert torch.equal(epochs[0], RandomHorizontalFlip(0.5)(images, CounterRNG(0, 0, index), 1))  # drawn as usual
    assert torch.equal(epochs[1], epochs[0].flip(-1))
    assert torch.equal(epochs[2], epochs[0])
    again = torch.ones_like(index)
    assert torch.equal(flip(images, CounterRNG(0, 0, index, again), 1), epochs[1])
    assert torch.equal(flip(images, CounterRNG(0, 1, index, again), 1), epochs[0])


def test_flip_and_crop_at_their_extremes(images: Tensor, rng: CounterRNG) -> None:
    assert torch.equal(RandomHorizontalFlip(0.0)(images, rng, 0), images)
    assert torch.equal(RandomHorizontalFlip(1.0)(images, rng, 0), images.flip(-1))
    assert torch.equal(RandomCrop(0)(images, rng, 0), images)


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


def test_a_batch_is_augmented_image_by_image(images: Tensor, rng: CounterRNG) -> None:
    transform = BatchTransform(
        [RandomCrop(4), RandomHorizontalFlip(0.5)],
        image_size=32,
        interpolation="bicubic",
        mean=[0.5] * 3,
        std=[0.25] * 3,
    )
    together = transform(images, rng)
    half = transform(images[32:], CounterRNG(rng.seed, rng.epoch, rng.indices[32:]))
    assert torch.equal(together[32:], half)
    same = transform(images[:1].expand(64, -1, -1, -1), rng)
    assert len(torch.unique(same.flatten(1), dim=0)) > 40  # one image at 64 indices: 64 draws
    assert torch.equal(transform(images), Normalize([0.5] * 3, [0.25] * 3)(images))  # evaluation: no augmentation


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_224.augreg2_in21k_ft_in1k", "deit3_small_patch16_224.fb_in1k", "resnet18.tv_in1k"]
)
def test_preprocessing_for_pretrained_weights_equals_timm_s(name: str) -> None:
    """The reference is timm's evaluation transform without its crop."""
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


@pytest.mark.parametrize(("area", "aspect"), [(AREA, ASPECT), ((0.5, 0.9), (0.2, 2.0))])  # many of these do not fit
def test_erased_boxes_have_torchvision_s_distribution(area: tuple[float, float], aspect: tuple[float, float]) -> None:
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


def test_the_erased_box_is_noise_and_the_rest_stays() -> None:
    images, rng = make_images(2000), CounterRNG(0, 1, torch.arange(2000))
    erasing = RandomErasing(0.25, AREA, ASPECT)
    result, boxes = erasing(images, rng, 3), erasing.boxes(rng, 3, 32, 32)
    chosen = rng.uniform(3, 1)[:, 0] < 0.25
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


def test_erasing_depends_on_image_and_epoch_and_not_on_the_batch() -> None:
    images, index = make_images(300), torch.arange(300)
    erasing = RandomErasing(0.5, AREA, ASPECT)
    result = erasing(images, CounterRNG(0, 0, index), 0)
    some = torch.tensor([250, 7, 42, 43])
    assert torch.equal(erasing(images[some], CounterRNG(0, 0, some), 0), result[some])
    assert not torch.equal(erasing(images, CounterRNG(0, 1, index), 0), result)
    assert torch.equal(RandomErasing(0.0, AREA, ASPECT)(images, CounterRNG(0, 0, index), 0), images)


@pytest.mark.parametrize("wrong", [{"p": 1.1}, {"area": (0.4, 0.1)}, {"aspect": (0, 1)}])
def test_erasing_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="RandomErasing: p="):
        RandomErasing(**{"p": 0.5, "area": AREA, "aspect": ASPECT, **wrong})
