"""What interrupts a run in the tests."""

import os
from typing import Any

import pytorch_lightning as pl


class SendSignal(pl.Callback):
    """Sends this process a signal at one place of the run: a hook in an epoch, and of batches at one of them."""

    def __init__(self, number: int, hook: str, epoch: int, batch: int | None = None) -> None:
        def send(trainer: pl.Trainer, *arguments: Any, **_: Any) -> None:
            here = arguments[-1] if batch is not None else None
            if trainer.current_epoch == epoch and here == batch:
                os.kill(os.getpid(), number)

        setattr(self, hook, send)


class PoisonBatch(pl.Callback):
    """Makes the loss of one batch NaN."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.place = epoch, batch

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == self.place:
            batch.images.fill_(float("nan"))
