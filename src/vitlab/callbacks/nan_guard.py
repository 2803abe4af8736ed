"""Stop a run, or skip the step, when the training loss is NaN or infinite."""

from typing import Any

import pytorch_lightning as pl
import torch

from vitlab.callbacks.checkpointing import LastCheckpoint
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

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        self.module = pl_module

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.skips and trainer.world_size > 1:
            raise UserError("callbacks.nan.action=skip works on one device; use stop on several")
        pl_module.skips_non_finite = self.skips
        pl_module.skipped_steps = self.resumed
        self.first = torch.full((), -1, device=pl_module.device)  # index of the epoch's first bad batch
        self.checked = trainer.global_step

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.skipped_steps = 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.skips:
            return
        bad = (self.first < 0) & ~outputs["loss"].isfinite()
        self.first = torch.where(bad, batch_idx, self.first)
        # At the steps that are logged, when the host waits for the device anyway.
        if trainer.global_step % trainer.log_every_n_steps == 0 and trainer.global_step > self.checked:  # type: ignore[attr-defined]
            self.checked = trainer.global_step
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
