import pytest
import torch

from vitlab.data.arrays import ImageArrays, stratified_split


def test_every_class_keeps_its_fraction() -> None:
    labels = torch.arange(50_000) % 10
    kept, held_out = stratified_split(labels, 5000, seed=0)
    assert torch.bincount(labels[held_out]).tolist() == [500] * 10
    assert torch.equal(torch.cat([kept, held_out]).sort().values, torch.arange(50_000))


def test_uneven_classes_are_split_within_one_image() -> None:
    labels = torch.tensor([0] * 57 + [1] * 31 + [2] * 12)
    _, held_out = stratified_split(labels, 0.25, seed=0)
    counts = torch.bincount(labels[held_out]).tolist()
    assert sum(counts) == 25
    assert all(abs(c - 0.25 * n) < 1 for c, n in zip(counts, [57, 31, 12], strict=True))


def test_the_split_depends_only_on_its_seed() -> None:
    labels = torch.arange(1000) % 10
    first = stratified_split(labels, 100, seed=0)[1]
    torch.manual_seed(99)
    assert torch.equal(first, stratified_split(labels, 100, seed=0)[1])
    assert not torch.equal(first, stratified_split(labels, 100, seed=1)[1])


def test_zero_holds_out_nothing_and_too_much_is_refused() -> None:
    kept, held_out = stratified_split(torch.zeros(5, dtype=torch.int64), 0, seed=0)
    assert len(kept) == 5
    assert len(held_out) == 0
    with pytest.raises(ValueError, match="can't hold out 5 of 5 images"):
        stratified_split(torch.zeros(5, dtype=torch.int64), 5, seed=0)


def test_fingerprint_depends_on_pixels_labels_and_order() -> None:
    arrays = ImageArrays.of(torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2), torch.tensor([0, 1]), ["a", "b"])
    other_label = ImageArrays.of(arrays.pick(slice(None)), torch.tensor([0, 2]), arrays.names)
    prints = {arrays.fingerprint(), arrays.take(torch.tensor([1, 0])).fingerprint(), other_label.fingerprint()}
    assert len(prints) == 3
    assert arrays.fingerprint() == arrays.take(torch.tensor([0, 1])).fingerprint()
