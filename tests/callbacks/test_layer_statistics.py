from functools import partial
from typing import Any

import pytest
import torch
from models.test_vision_transformer import SMALL
from pytorch_lightning.loggers import CSVLogger
from test_classifier import make, trainer
from torch.utils.data import DataLoader

from vitlab.callbacks import LayerStatistics, layer_statistics
from vitlab.callbacks.layer_statistics import group_by_layer
from vitlab.data import Batch
from vitlab.models import VisionTransformer, head_names
from vitlab.optim import Finetuning

LAYERS = ["pos_embed", "patch_embed", "blocks.00", "blocks.01", "blocks.02", "norm", "head"]


class Record(CSVLogger):
    """Records what is logged."""

    def __init__(self, folder: Any) -> None:
        super().__init__(folder)
        self.values: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.values.setdefault(step or 0, {}).update(metrics)


def batches(count: int) -> DataLoader[Any]:
    torch.manual_seed(0)
    items = [Batch(torch.randn(4, 3, 32, 32), torch.arange(4), torch.arange(4)) for _ in range(count)]
    return DataLoader(items, batch_size=None)  # type: ignore[arg-type]


def fit(tmp_path: Any, count: int, interval: int, **options: Any) -> tuple[dict[int, dict[str, float]], Any]:
    torch.manual_seed(1)
    network = VisionTransformer(**SMALL)
    log = Record(tmp_path)
    length = {key: options.pop(key) for key in ("max_epochs", "accumulate_grad_batches") if key in options}
    classifier = make(network, num_classes=SMALL["num_classes"], **options)
    watched = {"callbacks": [LayerStatistics()], "logger": log, "log_every_n_steps": interval}
    run = trainer(**watched, gradient_clip_val=0.1, **length)
    run.fit(classifier, batches(count))
    return log.values, network


def test_norms_are_those_of_gradients_weights_and_updates(tmp_path: Any) -> None:
    values, after = fit(tmp_path, 1, 1, optimizer=partial(torch.optim.SGD, lr=0.5))
    torch.manual_seed(1)
    before = VisionTransformer(**SMALL)
    (batch,) = batches(1)
    torch.nn.functional.cross_entropy(before(batch.images), batch.labels, label_smoothing=0.1).backward()
    was, found = values[0], dict(before.named_parameters())
    gradient = torch.cat([p.grad.flatten() for p in found.values() if p.grad is not None]).norm()
    assert was["gradient_norm/all"] == pytest.approx(gradient.item(), rel=1e-4)  # what clipping makes 0.1 of
    assert gradient > 0.2
    for layer, part in (("head", "head."), ("blocks.01", "blocks.1."), ("patch_embed", "patch_embed.")):
        own = [name for name in found if name.startswith(part)]
        weight = torch.cat([found[name].flatten() for name in own]).norm().item()
        step = torch.cat([(dict(after.named_parameters())[name] - found[name]).flatten() for name in own]).norm().item()
        assert was[f"weight_norm/{layer}"] == pytest.approx(weight, rel=1e-5)
        assert was[f"update_to_weight/{layer}"] == pytest.approx(step / weight, rel=1e-3)
    assert {tag.split("/")[1] for tag in was if tag.startswith("weight_norm/")} == {*LAYERS, "all"}
    assert not any(tag.startswith("lr/") for tag in was)


def test_norms_are_computed_only_in_logged_steps(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    norm = layer_statistics.get_total_norm
    monkeypatch.setattr(layer_statistics, "get_total_norm", lambda tensors: looks.append(1) or norm(tensors))
    values, _ = fit(tmp_path, 7, 3, optimizer=partial(torch.optim.SGD, lr=0.1))
    assert [step for step, row in values.items() if "gradient_norm/all" in row] == [2, 5]
    assert len(looks) == 2 * 3 * len(LAYERS)  # gradients, weights, updates


def test_an_epoch_shorter_than_the_interval_is_logged_once(tmp_path: Any) -> None:
    options = {"max_epochs": 3, "accumulate_grad_batches": 2, "optimizer": partial(torch.optim.SGD, lr=0.1)}
    values, _ = fit(tmp_path, 5, 50, **options)
    for tag in ("gradient_norm/all", "train/loss_step"):
        assert [step for step, row in values.items() if tag in row] == [2, 5, 8]


def test_different_learning_rates_of_layers_are_logged(tmp_path: Any) -> None:
    options = {"optimizer": partial(torch.optim.SGD, lr=0.1), "finetuning": Finetuning(layer_decay=0.5)}
    values, _ = fit(tmp_path, 1, 1, **options)
    rates = {tag: rate for tag, rate in values[0].items() if tag.startswith("lr/")}
    assert rates["lr/head"] == pytest.approx(0.1)
    assert rates["lr/head"] > rates["lr/blocks.01"] == 2 * rates["lr/blocks.00"]


def test_frozen_layers_are_left_out(tmp_path: Any) -> None:
    options = {"optimizer": partial(torch.optim.SGD, lr=0.1), "finetuning": Finetuning(freeze_epochs="all")}
    values, _ = fit(tmp_path, 1, 1, **options)
    assert {tag for tag in values[0] if tag.startswith("weight_norm/")} == {"weight_norm/head", "weight_norm/all"}


def test_every_model_has_layers() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    assert list(group_by_layer(network, head_names(network))) == ["0", "1"]
    network = VisionTransformer(**SMALL)
    assert set(group_by_layer(network, head_names(network))) == set(LAYERS)
