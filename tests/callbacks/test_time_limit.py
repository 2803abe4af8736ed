"""Runs with a time limit, on a fake clock."""

import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from test_classifier import Constant, batches, make

from vitlab.callbacks import FinalValidation, TimeLimit
from vitlab.errors import UserError
from vitlab.optim import cosine_over_time


class Clock:
    """Advances by `step` seconds in each training batch and by `validation` in each validation."""

    def __init__(self, step: float, validation: float = 0.0) -> None:
        self.now, self.step, self.validation = 1000.0, step, validation

    def monotonic(self) -> float:
        return self.now


class MoveClock(pl.Callback):
    def __init__(self, clock: Clock, slow_start: float) -> None:
        self.clock, self.slow_start = clock, slow_start
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.clock.now += self.clock.step + (self.slow_start if len(self.rates) == 1 else 0)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.clock.now += self.clock.validation


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(1.0)
    monkeypatch.setattr("pytorch_lightning.callbacks.timer.time", clock)
    return clock


def rates(
    clock: Clock, *, seconds: int = 100, slow_start: float = 0.0, epoch: int = 30, **options: Any
) -> tuple[list[float], Any]:
    """Learning rates of each step of a run, and its trainer."""
    move = MoveClock(clock, slow_start)
    run = pl.Trainer(
        **{"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"},
        **{"enable_checkpointing": False, "max_epochs": -1, "num_sanity_val_steps": 0},
        callbacks=[move, TimeLimit({"seconds": seconds}), FinalValidation()],
        **options,
    )
    schedule = partial(cosine_over_time, progress=None, warmup=0.1, min_lr_ratio=0.0)
    module = make(Constant(), optimizer=partial(torch.optim.SGD, lr=1.0), scheduler=schedule)
    run.fit(module, batches([0] * epoch, [1] * epoch), batches([0], [1]))
    return move.rates, run


def test_the_learning_rate_follows_the_time_limit(patched: Clock) -> None:
    seen, run = rates(patched)
    assert len(seen) == 101  # the first step is not counted
    assert run.current_epoch == 4  # three and the beginning of a fourth
    # A step has the rate of the time at the end of the step before the last.
    over = [max(0, step - 2) / 100 for step in range(101)]
    expected = [o / 0.1 if o < 0.1 else (1 + math.cos(math.pi * (o - 0.1) / 0.9)) / 2 for o in over]
    assert seen == pytest.approx(expected)
    assert "val/acc" in run.callback_metrics


def test_the_final_weights_are_validated_at_any_interval(patched: Clock) -> None:
    _, run = rates(patched, check_val_every_n_epoch=10)
    assert run.current_epoch == 4
    assert "val/acc" in run.callback_metrics


def test_a_slower_machine_takes_fewer_steps_on_the_same_schedule(patched: Clock) -> None:
    fast, _ = rates(patched)
    patched.step = 4.0
    slow, _ = rates(patched)
    assert len(slow) == 26
    assert slow[2:] == pytest.approx(fast[2 : 2 + 4 * len(slow[2:]) : 4])


def test_validation_counts_but_the_first_step_does_not(patched: Clock) -> None:
    patched.validation = 20.0
    seen, _ = rates(patched, slow_start=500.0)
    assert len(seen) == 61  # two validations in the course of it; the third is behind its end
    assert seen == sorted(seen[:13]) + sorted(seen[13:], reverse=True)


def test_a_resumed_run_continues_the_time_of_its_checkpoint(patched: Clock) -> None:
    clock = TimeLimit({"seconds": 100})
    clock.load_state_dict({"time_elapsed": {"train": 70.0}})
    trainer: Any = SimpleNamespace(world_size=1, should_stop=False, lightning_module=None)
    clock.on_train_start(trainer, None)  # type: ignore[arg-type]
    assert clock.progress() == pytest.approx(0.7)
    for _ in range(11):
        patched.now += 2.0
        clock.on_train_batch_end(trainer)
    assert clock.state_dict()["time_elapsed"]["train"] == pytest.approx(90.0)
    assert not trainer.should_stop


def test_all_ranks_use_the_clock_of_rank_0_every_few_batches(patched: Clock) -> None:
    asked = []

    def broadcast(own: float) -> float:
        asked.append(own)
        return own + 30.0  # the first rank is ahead

    strategy = SimpleNamespace(broadcast=broadcast)
    trainer: Any = SimpleNamespace(world_size=2, should_stop=False, strategy=strategy, lightning_module=None)
    clock = TimeLimit({"seconds": 100})
    clock.on_train_start(trainer, None)  # type: ignore[arg-type]
    seen = []
    while not trainer.should_stop:
        patched.now += 1.0
        clock.on_train_batch_end(trainer)
        seen.append(clock.progress())
    assert len(asked) == len(seen) / TimeLimit.SYNC_EVERY
    assert seen == sorted(seen)
    assert set(seen[TimeLimit.SYNC_EVERY - 1 :]) == {min((a + 30) / 100, 1.0) for a in asked}


def test_a_schedule_over_time_needs_a_time_limit() -> None:
    schedule = partial(cosine_over_time, progress=None, warmup=0.1, min_lr_ratio=0.0)
    module = make(Constant(), optimizer=partial(torch.optim.SGD, lr=1.0), scheduler=schedule)
    with pytest.raises(UserError, match=r"set trainer\.max_time=DD:HH:MM:SS"):
        module.configure_optimizers()
