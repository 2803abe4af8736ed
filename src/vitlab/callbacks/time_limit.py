"""The time that training takes of what it is given."""

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.trainer.states import RunningStage


class TimeLimit(Timer):
    """Ends a run when its time is over, and says how much of it is.

    Lightning's, which reads the clock of each rank and lets all wait for the first one's at every step. Here several
    ranks go by the first one's clock, at which they look every `LOOK_EVERY` batches. The time counts from the end of
    this process's first step on, in which the network may be compiled; validation counts. A run that goes on goes on
    with the time that its checkpoint has.
    """

    LOOK_EVERY = 10
    batches = 0  # of this process
    broadcast_from_rank0 = 0.0  # seconds, the same on all ranks

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        pl_module.time_progress = self.progress

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.broadcast_from_rank0 = float(self._offset)

    @property
    def seconds(self) -> float:
        """That the run is given."""
        assert self._duration is not None
        return self._duration

    def progress(self) -> float:
        """Share of the time that is over, from 0 to 1."""
        return min(self.broadcast_from_rank0 / self.seconds, 1.0)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if self.batches == 0:
            self._start_time[RunningStage.TRAINING] = time.monotonic()
        self.batches += 1
        if trainer.world_size == 1:
            self.broadcast_from_rank0 = self.time_elapsed()
        elif self.batches % self.LOOK_EVERY == 0:
            self.broadcast_from_rank0 = trainer.strategy.broadcast(self.time_elapsed())
        if self.broadcast_from_rank0 >= self.seconds:
            trainer.should_stop = True
