"""Stop a run when its loss is NaN or infinite (or skip the step), or by time."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer

from vitlab.callbacks.checkpointing import LastCheckpoint
from vitlab.data import Batch
from vitlab.errors import UserError


class NaNGuard(pl.Callback):
    """Watches for NaN and infinite training losses.

    Args:
        action: "stop" ends the run within one logging interval; until then the loss stays on the device. "skip" skips
            the step, which makes each step wait for its loss, and logs the number of `skipped_steps` each epoch.

    Raises:
        UserError: a loss was not finite, and `action` is "stop".
    """

    def __init__(self, action: str) -> None:
        self.skips = action == "skip"
        self.resumed = 0

    def state_dict(self) -> dict[str, Any]:
        return {"skipped_steps": self.module.skipped_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.resumed = state_dict["skipped_steps"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.skips and trainer.world_size > 1:
            raise UserError("callbacks.nan.action=skip works on one device; use stop on several")
        self.module = pl_module
        pl_module.skips_non_finite = self.skips
        pl_module.skipped_steps = self.resumed
        self.first = torch.full((), -1, device=pl_module.device)  # index of the epoch's first bad batch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.skipped_steps = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self.skips:
            return
        bad = (self.first < 0) & ~outputs["loss"].isfinite()
        self.first = torch.where(bad, batch_idx, self.first)
        if (batch_idx + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._check(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._check(trainer)
        if self.skips:
            pl_module.log("skipped_steps", float(pl_module.skipped_steps), sync_dist=True)

    def _check(self, trainer: pl.Trainer) -> None:
        if (first := int(self.first)) < 0:
            return
        file = next((c.file for c in trainer.callbacks if isinstance(c, LastCheckpoint)), None)  # type: ignore[attr-defined]
        saved = f"the last good checkpoint is {file}" if file and file.exists() else "no good checkpoint was saved"
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        raise UserError(
            f"the training loss is NaN or infinite since batch {first + 1} of epoch {trainer.current_epoch + 1}, at a "
            f"learning rate of about {rate:.2g}; {saved}; to continue, start from it with init_from=... and a smaller "
            "optimizer.lr, or skip such steps with callbacks.nan.action=skip"
        )


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
