"""Mixing equals torchvision's, for any number of ranks."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from data.modules import NEUTRAL
from torch import Tensor
from torchvision.transforms import v2

from vitlab.data import (
    AutoAugment,
    Batch,
    ImageDataModule,
    Mixing,
    RandomCrop,
    RandomErasing,
    SyntheticDataModule,
    main_class,
)
from vitlab.data.counter_rng import fork_batch_rng

WHOLE = {"p": 1.0, "mixup_alpha": 0.8, "cutmix_alpha": 1.0, "cutmix_share": 0.5, "off_share": 0.0}


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(12, 3, 16, 16, generator=generator), torch.randint(0, 10, (12,), generator=generator)


def mix(number: int = 0, epoch: int = 0, seed: int = 0, **changes: Any) -> tuple[Tensor, Tensor]:
    images, labels = batch()
    mixed: tuple[Tensor, Tensor] = Mixing(**{**WHOLE, **changes})(
        images, labels, classes=10, seed=seed, epoch=epoch, number=number
    )
    return mixed


@pytest.mark.parametrize(
    ("cutmix_share", "oracle"), [(0.0, v2.MixUp(alpha=0.8, num_classes=10)), (1.0, v2.CutMix(num_classes=10))]
)
def test_a_mixed_batch_equals_torchvision_s_with_the_same_random_numbers(cutmix_share: float, oracle: Any) -> None:
    for number in range(5):
        with fork_batch_rng(3, 2, number):
            torch.rand(2)  # whether to mix, and how
            images, shares = oracle(*batch())
        ours = mix(number, 2, 3, cutmix_share=cutmix_share)
        assert torch.equal(ours[0], images)
        assert torch.equal(ours[1], shares)
        assert ours[1].dtype == torch.float32
        torch.testing.assert_close(ours[1].sum(dim=1), torch.ones(12))


def test_mixing_depends_only_on_seed_epoch_and_batch_number() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = mix(4, 3, 2)[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(10)
    assert torch.equal(mix(4, 3, 2)[0], first)
    for other in ((5, 3, 2), (4, 2, 2), (4, 3, 1)):
        assert not torch.equal(mix(*other)[0], first)


def test_batches_are_mixed_as_often_as_p_and_cutmix_share_say() -> None:
    kinds = []
    images, labels = batch()
    for number in range(1000):
        mixed, shares = mix(number, p=0.4, cutmix_share=0.75)
        if shares is labels or not shares.is_floating_point():
            assert torch.equal(mixed, images)
            kinds.append("none")
        else:
            kinds.append("cutmix" if (mixed == images).float().mean() > 0.02 else "mixup")
    assert 350 < kinds.count("cutmix") + kinds.count("mixup") < 450
    assert 60 < kinds.count("mixup") < 150  # a rare CutMix replaces the whole image and counts as mixup


def test_the_last_epochs_are_not_mixed() -> None:
    mixing = Mixing(**{**WHOLE, "off_share": 0.3})
    assert [mixing.is_on(epoch / 10) for epoch in (0, 6, 7, 9)] == [True, True, False, False]
    assert Mixing(**WHOLE).is_on(0.999)


@pytest.mark.parametrize(
    "wrong", [{"p": 1.5}, {"mixup_alpha": 0.0}, {"cutmix_alpha": -1.0}, {"cutmix_share": 2.0}, {"off_share": -0.1}]
)
def test_mixing_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"Mixing: .* must be "):
        Mixing(**{**WHOLE, **wrong})


def test_the_main_class_of_a_mixed_label_has_the_largest_weight() -> None:
    labels = torch.tensor([3, 1])
    assert torch.equal(main_class(labels), labels)
    assert torch.equal(main_class(torch.tensor([[0.3, 0.7], [0.9, 0.1]])), torch.tensor([1, 0]))


def data_of(rank: int = 0, world_size: int = 1, **mixing: Any) -> ImageDataModule:
    data = SyntheticDataModule(
        **{
            **NEUTRAL,
            **{"train_images": 80, "test_images": 10, "noise": 0.06, "data_seed": 0},
            **{"batch_size": 12, "repeated_augmentation": 2, "image_size": 48},
            "augmentations": [
                *(RandomCrop(4), AutoAugment(), RandomErasing(0.5, (0.02, 0.4), (0.3, 3.33))),
                Mixing(**{**WHOLE, "p": 0.8, **mixing}),
            ],
        }
    )
    data.setup()
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=world_size,
        global_rank=rank,
        current_epoch=1,
        training=True,
        lightning_module=SimpleNamespace(progress=lambda epoch: epoch / 10),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        precision_plugin=SimpleNamespace(convert_input=lambda images: images),
    )
    return data


def epoch_of(data: ImageDataModule) -> list[Batch]:
    return [data.on_after_batch_transfer(stored, 0) for stored in data.train_dataloader()]


def test_the_batches_of_three_ranks_equal_those_of_one_process_bit_by_bit() -> None:
    alone, ranks = epoch_of(data_of()), [epoch_of(data_of(rank, 3)) for rank in range(3)]
    assert len(alone) == 5
    assert {b.labels.is_floating_point() for b in alone} == {True, False}
    for whole, *shares in zip(alone, *ranks, strict=True):
        assert whole.images.shape == (12, 3, 48, 48)
        for name in ("images", "labels", "indices"):
            assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(whole, name))


def test_one_process_mixes_the_augmented_batch_as_torchvision_does() -> None:
    mixed, plain = epoch_of(data_of(p=1.0, cutmix_share=0.0)), epoch_of(data_of(p=1e-9))
    for number, (ours, before) in enumerate(zip(mixed, plain, strict=True)):
        assert torch.equal(ours.indices, before.indices)
        with fork_batch_rng(0, 1, number):
            torch.rand(2)
            images, shares = v2.MixUp(alpha=0.8, num_classes=10)(before.images, before.labels)
        assert torch.equal(ours.images, images)
        assert torch.equal(ours.labels, shares)


def test_neither_the_last_epochs_nor_evaluation_are_mixed() -> None:
    data = data_of(p=1.0, off_share=0.9)
    for trained in epoch_of(data):  # epoch 2 of 10
        assert (trained.images.shape[0], trained.labels.dtype) == (12, torch.int64)
    data = data_of(p=1.0, off_share=0.85)
    assert all(trained.labels.is_floating_point() for trained in epoch_of(data))
    data.trainer.training = False  # type: ignore[union-attr]
    for loader in (data.val_dataloader(), data.test_dataloader()):
        seen = [data.on_after_batch_transfer(stored, 0) for stored in loader]
        assert all(b.labels.dtype == torch.int64 for b in seen)
        assert len(torch.cat([b.indices for b in seen]).unique()) == len(loader.arrays)


def test_the_first_batch_is_the_run_s_first() -> None:
    data = data_of(p=1.0)
    first = data.first_batch(torch.device("cpu"))
    data.trainer.current_epoch = 0  # type: ignore[union-attr]
    trained = epoch_of(data)[0]
    assert torch.equal(first.images, trained.images)
    assert torch.equal(first.labels, trained.labels)


def test_label_smoothing_of_mixed_labels_mixes_the_smoothed_ones() -> None:
    logits, (_, shares) = torch.randn(12, 10, generator=torch.Generator().manual_seed(1)), mix(cutmix_share=0.0)
    labels = batch()[1]
    own = shares.gather(1, labels[:, None])[:, 0]
    own = torch.where(labels == labels.roll(1), 1.0, own)
    losses = F.cross_entropy(logits, labels, label_smoothing=0.1, reduction="none")
    others = F.cross_entropy(logits, labels.roll(1), label_smoothing=0.1, reduction="none")
    expected = (own * losses + (1 - own) * others).mean()
    torch.testing.assert_close(F.cross_entropy(logits, shares, label_smoothing=0.1), expected)
