"""Raise the optimizer's momentum during the first steps."""

from typing import Any

import pytorch_lightning as pl

from vitlab.errors import UserError


class MomentumWarmup(pl.Callback):
    """Raises the momentum of SGD or Muon linearly from `start` to `end` over the first `ramp_steps` optimizer steps.

    As for Muon in github.com/KellerJordan/modded-nanogpt (record of 2024-11-06: from 0.85 to 0.95 over 300 steps): a
    long memory of the first gradients, which soon point elsewhere, slows the beginning.
    """

    def __init__(self, start: float, end: float, ramp_steps: int) -> None:
        self.start, self.end, self.ramp_steps = start, end, ramp_steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not all("momentum" in group for group in trainer.optimizers[0].param_groups):
            raise UserError("callbacks.momentum_warmup: this optimizer has no momentum; take optimizer=muon or sgd")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        passed = min(trainer.global_step / self.ramp_steps, 1.0)
        for group in trainer.optimizers[0].param_groups:
            group["momentum"] = self.start + passed * (self.end - self.start)
