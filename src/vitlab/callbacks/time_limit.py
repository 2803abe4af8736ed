"""End a run after `trainer.max_time`, which a schedule over time follows."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Timer


class TimeLimit(Timer):
    """Stops a run when its time is over, and provides the progress for a schedule over time.

    Lightning's Timer reads each rank's clock and makes all ranks wait for the first one at every step. Here all ranks
    use the clock of rank 0, which they read every `SYNC_EVERY` batches. The time starts at the end of the process's
    first step, which may compile the model; validation counts. A resumed run has the time that its checkpoint had left.
    """

    SYNC_EVERY = 10
    batches = 0  # of this process
    elapsed = 0.0  # seconds, equal on all ranks

    def __init__(self, duration: Any) -> None:
        super().__init__(duration)
        seconds = self.time_remaining()
        assert seconds is not None
        self.seconds: float = seconds  # the limit

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        pl_module.time_progress = self.progress

    def progress(self) -> float:
        """Fraction of the time that has passed, from 0 to 1."""
        return min(self.elapsed / self.seconds, 1.0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.elapsed = self.time_elapsed()  # of earlier processes: the clock stands still until the first step's end

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.batches == 0:
            super().on_train_start(trainer, trainer.lightning_module)
        self.batches += 1
        if trainer.world_size == 1:
            self.elapsed = self.time_elapsed()
        elif self.batches % self.SYNC_EVERY == 0:
            self.elapsed = trainer.strategy.broadcast(self.time_elapsed())
        if self.elapsed >= self.seconds:
            trainer.should_stop = True
