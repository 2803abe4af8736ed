"""Test balanced epochs, folds, and a choice of classes."""

from collections import Counter
from typing import Any

import pytest
import torch
from data.modules import NEUTRAL

from vitlab.data.arrays import Dataset, ImageArrays, stratified_folds
from vitlab.data.datamodule import ImageDataModule
from vitlab.data.loader import ResidentLoader, balanced_order
from vitlab.errors import UserError

LABELS = torch.tensor([0] * 40 + [1] * 7 + [2] * 13)


class Coloured(ImageDataModule):
    """60 images of three unequal classes; the pixels are the number of the image."""

    def load(self) -> Dataset:
        images = torch.arange(60, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
        train = ImageArrays.of(images, LABELS, [str(number) for number in range(60)])
        return Dataset(train, train.take(torch.arange(0, 60, 6)), ["ant", "bee", "cow"])


def make(**changes: Any) -> Coloured:
    data = Coloured(**{**NEUTRAL, "image_size": 4, "mean": [0.5] * 3, "std": [0.2] * 3, **changes})
    data.setup()
    return data


def loader(rank: int = 0, world_size: int = 1, **changes: Any) -> ResidentLoader:
    arrays, place = make(val_size=0).splits["train"], {"rank": rank, "world_size": world_size}
    cpu = torch.device("cpu")
    return ResidentLoader(
        arrays, 12, seed=0, epoch=lambda: 4, drop_last=True, device=cpu, balanced=True, **place, **changes
    )


@pytest.mark.parametrize("epoch", range(5))
def test_classes_occur_equally_often_and_so_do_the_images_of_each(epoch: int) -> None:
    order, used = balanced_order(LABELS, 0, epoch)
    assert len(order) == len(LABELS)
    assert torch.bincount(LABELS[order]).tolist() == [20, 20, 20]
    uses = Counter(order.tolist())
    for label in range(3):
        counts = [uses[i] for i in (label == LABELS).nonzero().flatten().tolist()]
        assert max(counts) - min(counts) <= 1
    pairs = list(zip(order.tolist(), used.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert all(used.tolist()[i] < uses[image] for i, image in enumerate(order.tolist()))


def test_what_does_not_divide_goes_to_other_classes_in_other_epochs() -> None:
    labels = torch.arange(10).clamp(max=6)  # 7 classes, 10 images
    counts = {tuple(torch.bincount(labels[balanced_order(labels, 0, epoch)[0]]).tolist()) for epoch in range(9)}
    assert len(counts) > 1
    assert all(sum(count) == 10 and set(count) == {1, 2} for count in counts)


def test_orders_depend_on_seed_and_epoch() -> None:
    orders = {tuple(balanced_order(LABELS, seed, epoch)[0].tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_use_of_an_image_is_augmented_anew_on_any_number_of_ranks_and_after_resuming(repeats: int) -> None:
    whole = list(loader(repeats=repeats))
    uses = [use for b in whole for use in zip(b.indices.tolist(), b.repetitions.tolist(), strict=True)]
    assert len(set(uses)) == len(uses)
    shards = [list(loader(rank, 3, repeats=repeats)) for rank in range(3)]
    for number, batch in enumerate(whole):
        parts = [(b.indices, b.repetitions) for b in (shard[number] for shard in shards)]
        assert torch.equal(torch.cat([indices for indices, _ in parts]), batch.indices)
        assert torch.equal(torch.cat([repetitions for _, repetitions in parts]), batch.repetitions)
    resumed = loader(repeats=repeats)
    resumed.load_state_dict({"epoch": 4, "batches": 2})
    assert [b.indices.tolist() for b in resumed] == [b.indices.tolist() for b in whole[2:]]


@pytest.mark.parametrize("folds", [2, 5, 7])
def test_folds_are_stratified_and_cover_the_training_images(folds: int) -> None:
    of_each = stratified_folds(LABELS, folds, 0)
    sizes = torch.bincount(of_each, minlength=folds)
    assert sizes.max() - sizes.min() <= 1
    for label in range(3):
        counts = torch.bincount(of_each[label == LABELS], minlength=folds)
        assert counts.max() - counts.min() <= 1
    seen: list[str] = []
    for fold in range(folds):
        data = make(folds=folds, fold=fold)
        assert any(f"fold {fold} of 0 to {folds - 1}" in note for note in data.notes)
        splits = data.splits
        assert not set(splits["train"].names) & set(splits["val"].names)
        assert len(splits["train"]) + len(splits["val"]) == 60
        seen += splits["val"].names
    assert sorted(seen, key=int) == [str(number) for number in range(60)]
    assert not torch.equal(stratified_folds(LABELS, folds, 1), of_each)


def test_chosen_classes_are_relabelled_in_the_order_given() -> None:
    data = make(classes=["cow", "ant"], val_size=0)
    assert data.spec.classes == ["cow", "ant"]
    assert torch.bincount(data.splits["train"].labels).tolist() == [13, 40]
    train = data.splits["train"]
    numbers = train.pick(slice(None))[:, 0, 0, 0].long()
    assert torch.equal(train.labels, (LABELS[numbers] == 0).long())
    assert set(data.splits["test"].labels.tolist()) == {0, 1}
    every = make(classes=["cow", "ant", "bee"], val_size=0)  # all in another order
    assert every.spec.classes == ["cow", "ant", "bee"]
    assert torch.bincount(every.splits["train"].labels)[:2].tolist() == [13, 40]
    with pytest.raises(UserError, match="no class cat"):
        make(classes=["cat", "ant"])
