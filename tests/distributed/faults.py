"""What befalls one of several processes in the tests."""

import os
import signal
import time
from typing import Any

import pytorch_lightning as pl


class Fault(pl.Callback):
    """At one batch of one rank: raises an error (or that once, under torchrun), kills the process, or stalls it."""

    def __init__(self, rank: int, batch: int, how: str) -> None:
        self.rank, self.batch, self.how = rank, batch, how

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.global_rank, trainer.fit_loop.total_batch_idx) != (self.rank, self.batch):
            return
        if self.how == "raises once" and os.environ["TORCHELASTIC_RESTART_COUNT"] != "0":
            return
        if self.how.startswith("raises"):
            raise ValueError("the fifth wheel came off")
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(10_000)
