"""The order of callbacks in a config does not matter."""

import csv
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from models.test_vision_transformer import SMALL
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers import CSVLogger
from test_classifier import make
from torch.utils.data import DataLoader

from vitlab.callbacks import (
    EMA,
    BestCheckpoint,
    FinalValidation,
    LastCheckpoint,
    LayerStatistics,
    MetricsCSV,
    NaNGuard,
    Throughput,
    TimeLimit,
    throughput,
)
from vitlab.data import Batch
from vitlab.models import VisionTransformer
from vitlab.runs.checkpoint import EMA_KEY

STEP, SLOW = 1.0, 7.0  # seconds of fetching a batch, and of the slow callback


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


class SlowCallback(pl.Callback):
    """Takes its time before and after each step and validation."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def wait(self, *_: Any, **__: Any) -> None:
        self.clock.now += SLOW

    on_train_epoch_start = on_train_batch_start = on_train_batch_end = wait
    on_validation_start = on_validation_end = wait


def loader(clock: Clock, count: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(4, 3, 32, 32, generator=generator) for _ in range(count)]

    class Slow(torch.utils.data.Dataset[Batch]):
        def __len__(self) -> int:
            return count

        def __getitem__(self, index: int) -> Batch:
            clock.now += STEP
            return Batch(batches[index], torch.arange(4), torch.arange(4))

    return DataLoader(Slow(), batch_size=None)


def train(folder: Path, order: int, monkeypatch: pytest.MonkeyPatch) -> tuple[pl.Trainer, list[dict[str, str]], Any]:
    """A run whose time limit ends it within an epoch; `order` is a seed, 0 that of the list and 1 the reverse."""
    clock = Clock()
    monkeypatch.setattr(throughput, "perf_counter", clock.monotonic)
    monkeypatch.setattr("pytorch_lightning.callbacks.timer.time", clock)
    torch.manual_seed(0)
    classifier = make(
        VisionTransformer(**SMALL), num_classes=SMALL["num_classes"], optimizer=partial(torch.optim.SGD, lr=0.1)
    )
    callbacks: list[pl.Callback] = [
        Throughput(),
        EMA(0.9, 9),
        SlowCallback(clock),
        LayerStatistics(),
        NaNGuard("stop"),
        EarlyStopping("val/acc", mode="max", patience=9),
        TimeLimit({"seconds": 150}),
        FinalValidation(),
        MetricsCSV(folder / "metrics.csv"),
        BestCheckpoint(dirpath=folder, filename="best", monitor="val/loss", mode="min", enable_version_counter=False),
        LastCheckpoint(folder / "last.ckpt", every_n_epochs=1, every_minutes=None),
    ]
    if order == 1:
        callbacks.reverse()
    elif order:
        random.Random(order).shuffle(callbacks)
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        max_epochs=5,
        check_val_every_n_epoch=2,
        logger=CSVLogger(folder / "log"),
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(classifier, loader(clock, 3), loader(clock, 1))
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return trainer, rows, torch.load(folder / "last.ckpt", weights_only=True)


def without_timing(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key not in ("seconds", "memory_gib")} for row in rows]


def test_no_order_of_callbacks_changes_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [train(tmp_path / str(order), order, monkeypatch) for order in range(4)]
    first, rows, last = runs[0]
    assert first.global_step == 10
    assert [bool(row["val/acc"]) for row in rows] == [False, True, False, True]  # the final weights are validated
    for row in rows:
        steps = int(row["step"]) - 3 * (int(row["epoch"]) - 1)
        seconds = steps * (STEP + 2 * SLOW)
        assert float(row["images_per_second"]) == pytest.approx(4 * steps / seconds)
        assert float(row["data_wait"]) == pytest.approx(steps * STEP / seconds)  # callbacks are no data wait
    for trainer, others, checkpoint in runs:
        assert trainer.global_step == first.global_step
        assert without_timing(others) == without_timing(rows)
        for key in ("state_dict", EMA_KEY):
            for name, tensor in last[key].items():
                assert torch.equal(checkpoint[key][name], tensor), name
        states = checkpoint["callbacks"]
        assert len(states["MetricsCSV"]["rows"]) == len(rows)  # the last epoch's row, too
        (best,) = (state for key, state in states.items() if key.startswith("BestCheckpoint"))
        losses = [float(row["val/loss"]) for row in rows if row["val/loss"]]
        assert best["best_model_score"] == min(losses) == losses[-1]  # the last epoch's score, too
