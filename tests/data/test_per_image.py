"""Transforms of single images, such as torchvision's, are drawn for each image, and the same again."""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL_RUN, Command
from data.test_random_augment import make_images
from test_resume import assert_same_run, stop
from torch import Tensor, nn
from torchvision import transforms as v1
from torchvision.transforms import v2

from vitlab.data.counter_rng import CounterRNG
from vitlab.data.per_image import PerImage, as_batch_transform
from vitlab.data.transforms import RandomCrop
from vitlab.errors import UserError

SIZE = 16


class PythonAndNumPy(nn.Module):
    """Draws as people's own transforms do."""

    def forward(self, image: Tensor) -> Tensor:
        return (image // 4) + random.randrange(32) + np.random.randint(32)


TRANSFORMS: dict[str, Any] = {
    "RandomPosterize": v2.RandomPosterize(4),
    "RandomRotation": v2.RandomRotation(20),
    "RandomPerspective": v2.RandomPerspective(p=1.0),
    "ElasticTransform": v2.ElasticTransform(sigma=1.0),
    "GaussianNoise": v2.GaussianNoise(),
    "RandomApply": v2.RandomApply([v2.GaussianBlur(3)], p=0.5),
    "RandomChoice": v2.RandomChoice([v2.RandomInvert(1.0), v2.RandomSolarize(99, 1.0)]),
    "RandomOrder": v2.RandomOrder([v2.RandomInvert(), v2.RandomErasing(1.0)]),
    "Compose": v2.Compose([v2.RandomResizedCrop(SIZE), v2.ColorJitter(0.4, 0.4, 0.4, 0.1)]),
    "AugMix": v2.AugMix(),
    "RandAugment": v2.RandAugment(),
    "Lambda": v2.Lambda(lambda image: image.flip(-1)),
    "ScaleJitter, then one size": v2.Compose([v2.ScaleJitter((SIZE, SIZE)), v2.Resize((SIZE, SIZE))]),
    "v1 module": v1.ColorJitter(0.4),
    "v1 callable": v1.Compose([v1.RandomChoice([v1.RandomInvert(1.0), v1.RandomVerticalFlip(1.0)])]),
    "function": partial(v2.functional.rotate, angle=90),
    "Python and NumPy": PythonAndNumPy(),
    "Sequential": nn.Sequential(v2.RandomHorizontalFlip(), v2.RandomPosterize(2)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_an_image_gets_its_own_random_numbers_whatever_its_batch(name: str) -> None:
    module, images = as_batch_transform(TRANSFORMS[name]), make_images(24)[..., :SIZE, :SIZE].contiguous()
    rng = CounterRNG(1, 2, torch.arange(24) * 5)
    assert isinstance(module, PerImage)
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    whole = module(images, rng, 0)
    state = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(9), random.seed(9), np.random.seed(9)
    rows = torch.tensor([20, 1, 7])
    assert torch.equal(module(images[rows], rng[rows], 0), whole[rows])
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    assert (torch.rand(1), random.random(), np.random.rand()) == state  # others' random numbers are not used up
    assert whole.dtype == torch.uint8
    same = module(images[:1].expand(24, -1, -1, -1), rng, 0)
    is_random = name not in ("Lambda", "function")
    assert (len(torch.unique(same.flatten(1), dim=0)) > 1) == is_random
    if is_random:
        for other in (CounterRNG(1, 3, rng.indices), CounterRNG(2, 2, rng.indices)):
            assert not torch.equal(module(images, other, 0), whole)
        assert not torch.equal(module(images, rng, 1), whole)


def test_a_module_for_batches_stays_as_it_is() -> None:
    crop = RandomCrop(4)
    assert as_batch_transform(crop) is crop


class Broken(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        raise KeyError("no such colour")


@pytest.mark.parametrize(
    ("transform", "found"),
    [
        (v2.ToDtype(torch.float32, scale=True), "ToDtype makes torch.float32 [3, 16, 16]"),
        (v2.Grayscale(), "Grayscale makes torch.uint8 [1, 16, 16]"),
        (v2.ToPILImage(), "ToPILImage makes Image"),
        (v2.RandomShortestSize([8, 12]), "RandomShortestSize makes images of different sizes"),
        (Broken(), "Broken fails on a uint8 image [3, 16, 16] (KeyError: 'no such colour')"),
        (lambda image: None, "<lambda> makes NoneType"),
    ],
)
def test_what_makes_no_images_is_refused(transform: Callable[..., Any], found: str) -> None:
    with pytest.raises(UserError) as error:
        as_batch_transform(transform)(make_images(24)[..., :SIZE, :SIZE], CounterRNG(0, 0, torch.arange(24)), 0)
    assert found in str(error.value)


@pytest.mark.parametrize("mix", [v2.MixUp(num_classes=10), v2.CutMix(num_classes=10)])
def test_torchvision_s_mixing_has_another_name_here(mix: Any) -> None:
    with pytest.raises(UserError, match=r"augment\.mixing"):
        as_batch_transform(mix)


def test_a_run_with_torchvision_s_transforms_is_resumed(in_process: Command, tmp_path: Path) -> None:
    own = ["+augment.rotate._target_=torchvision.transforms.v2.RandomRotation", "+augment.rotate.degrees=20"]
    choices = ["augment=[basic,resized_crop,vertical_flip,color_jitter,grayscale,blur]", *own, "augment.mixing.p=0.5"]
    quick = [
        *SMALL_RUN,
        "data.train_images=60",
        "data.test_images=20",
        "data.batch_size=16",
        "callbacks.vit_figures=null",
        *choices,
    ]
    whole = in_process("train.py", *quick, "preflight=strict", "hydra.run.dir=whole")
    assert whole.returncode == 0, whole.stderr
    place = stop("on_train_batch_start", 1, 2)
    assert in_process("train.py", *quick, "hydra.run.dir=run", *place).returncode == 143
    resumed = in_process("train.py", "resume=run", "callbacks.stop=null")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(tmp_path / "run", tmp_path / "whole")
