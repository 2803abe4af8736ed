import pytest
import torch
from data.modules import NEUTRAL
from torch.nn.functional import cross_entropy

from vitlab.data import SyntheticDataModule


def make(train_images: int = 8000, data_seed: int = 0) -> SyntheticDataModule:
    own = {"train_images": train_images, "test_images": 1000, "noise": 0.06, "data_seed": data_seed}
    data = SyntheticDataModule(**{**NEUTRAL, **own, "val_size": 0})
    data.setup()
    return data


def test_images_depend_only_on_their_seed() -> None:
    first = make(100)
    torch.manual_seed(7)
    again, other = make(100), make(100, data_seed=1)
    for split in ("train", "test"):
        assert first.splits[split].fingerprint() == again.splits[split].fingerprint()
        assert first.splits[split].fingerprint() != other.splits[split].fingerprint()


def test_no_test_image_is_among_the_training_images() -> None:
    data = make(2000)
    seen = {image.numpy().tobytes() for image in data.splits["train"].pick(slice(None))}
    assert len(seen) == 2000
    assert not any(image.numpy().tobytes() in seen for image in data.splits["test"].pick(slice(None)))


def test_classes_have_equal_size() -> None:
    data = make(100)
    assert torch.bincount(data.splits["train"].labels).tolist() == [10] * 10
    assert len(data.spec.classes) == 10


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 10, one per class"):
        make(9)


def test_a_linear_classifier_on_pixels_stays_under_60_percent() -> None:
    splits = make().splits
    x, y = splits["train"].pick(slice(None)).flatten(1).float() / 255, splits["train"].labels
    mean, std = x.mean(dim=0), x.std(dim=0)
    x_test = (splits["test"].pick(slice(None)).flatten(1).float() / 255 - mean) / std
    x = (x - mean) / std
    best = 0.0
    for decay in (1e-3, 1e-1):  # nearly unregularised, and regularised
        torch.manual_seed(0)
        linear = torch.nn.Linear(3072, 10)
        optimizer = torch.optim.AdamW(linear.parameters(), lr=1e-3, weight_decay=decay)
        for _ in range(15):
            for batch in torch.randperm(len(x)).split(200):
                optimizer.zero_grad()
                (cross_entropy(linear(x[batch]), y[batch]) + decay * linear.weight.abs().sum() / 100).backward()
                optimizer.step()
            best = max(best, (linear(x_test).argmax(1) == splits["test"].labels).float().mean().item())
    assert 0.15 < best < 0.6  # and above chance: the classifier did learn
