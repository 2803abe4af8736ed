from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vitlab.data.arrays import ImageArrays
from vitlab.preflight import Status
from vitlab.preflight.data_checks import labels, splits_are_disjoint


def split_of(name: str, values: list[int], labels: list[int] | None = None) -> ImageArrays:
    """One grey image for each value."""
    images = torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()
    names = [f"{name}/{number}.png" for number in range(len(values))]
    return ImageArrays.of(images, torch.tensor(labels or [0] * len(values), dtype=torch.long), names)


def check(**splits: ImageArrays) -> Any:
    context: Any = SimpleNamespace(data=SimpleNamespace(splits=splits))
    return splits_are_disjoint(context)


def test_distinct_images_pass() -> None:
    found = check(train=split_of("train", [1, 2, 3]), val=split_of("val", [4]), test=split_of("test", []))
    assert found.status is Status.OK


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_copies_inside_a_split_are_a_warning_with_count_and_example(split: str) -> None:
    splits = {"train": split_of("train", [1, 2]), "val": split_of("val", [3, 4]), "test": split_of("test", [5, 6])}
    splits[split] = split_of(split, [7, 8, 7, 9, 7])
    found = check(**splits)
    assert found.status is Status.WARNING
    assert f"2 of 5 {split} images" in found.figure
    assert f"{split}/2.png is {split}/0.png" in found.meaning
    assert "label" not in found.figure


def test_copies_with_another_label_are_counted() -> None:
    train = split_of("train", [7, 7, 8, 8], [0, 1, 1, 1])
    found = check(train=train, val=split_of("val", [3]), test=split_of("test", []))
    assert "2 of 4 train images are copies of others in train, 1 of them with another label" in found.figure


def test_many_images_in_two_splits_fail_whatever_else_is_found() -> None:
    found = check(train=split_of("train", [1, 1, 2]), val=split_of("val", [3]), test=split_of("test", [2]))
    assert found.status is Status.FAILED
    assert "1 of 1 test images are also in train" in found.figure
    assert "1 of 3 train images are copies" in found.figure
    assert "test/0.png is train/2.png" in found.meaning


@pytest.mark.parametrize(
    ("counts", "status"), [((4, 12), Status.OK), ((4, 13), Status.WARNING), ((0, 4), Status.WARNING)]
)
def test_classes_of_very_unequal_size_are_a_warning_that_says_what_helps(
    counts: tuple[int, int], status: Status
) -> None:
    of_each = [0] * counts[0] + [1] * counts[1]
    data = SimpleNamespace(
        splits={"train": split_of("train", list(range(len(of_each))), of_each)},
        spec=SimpleNamespace(classes=["a", "b"]),
    )
    context: Any = SimpleNamespace(data=data, num_classes=2)
    found = labels(context)
    assert found.status is status
    assert ("data.sampling=balanced" in (found.meaning or "")) == (counts == (4, 13))
