"""`last.ckpt`: where a run can go on, to the last bit."""

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities import rank_zero_only

from vitlab.distributed.slurm import requeue
from vitlab.errors import TerminatedError

ASK_EVERY = 10  # optimizer steps, of several ranks
SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]


class LastCheckpoint(Checkpoint):
    """Writes a checkpoint every so many epochs and minutes, and when the run is told to stop.

    Ctrl-C, SIGTERM, and SIGUSR1 (SLURM's warning before the time is up: the job is put into the queue again) end the
    run behind the step (of several ranks, one of the next `ASK_EVERY`), or the validation, that it is in; a second one
    at once. Lightning's ModelCheckpoint saves in
    the middle of a step on such occasions. Nothing is saved just before a validation, for resuming would leave that
    out, but behind it.

    Args:
        file: The checkpoint.
        every_n_epochs: Between two writings at an epoch's end; the run's last epoch is always written.
        every_minutes: Between two writings within epochs; None for none.
    """

    def __init__(self, file: Path, *, every_n_epochs: int, every_minutes: float | None) -> None:
        self.file = file
        self.every_n_epochs = every_n_epochs
        self.every_minutes = every_minutes
        self.received: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._listen()  # Lightning has set its own handlers just before
        self.written = time.monotonic()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._listen()

    def _listen(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == number:
            raise KeyboardInterrupt
        self.received = self.received or number
        os.write(2, b"\nStopping after this step. Interrupt again to stop at once.\n")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not _validation_follows(trainer):
            self._behind_a_step(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not (trainer.sanity_checking or trainer.is_last_batch):
            self._behind_a_step(trainer)

    def _behind_a_step(self, trainer: pl.Trainer) -> None:
        if (trainer.fit_loop.epoch_loop.batch_idx + 1) % trainer.accumulate_grad_batches != 0:
            return
        if trainer.world_size > 1 and trainer.global_step % ASK_EVERY:
            return  # to ask the other ranks makes the host wait for the device
        minutes = (time.monotonic() - self.written) / 60
        due = self.every_minutes is not None and minutes >= self.every_minutes
        if self._agreed(trainer, due or self.received is not None):
            self._save(trainer)
            self._stop_if_told(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        due = (trainer.current_epoch + 1) % self.every_n_epochs == 0 or _run_ends(trainer)
        if self._agreed(trainer, due or self.received is not None):
            self._save(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _flush(trainer)  # the epoch's own values, which the checkpoint of its end comes before
        self._stop_if_told(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop_if_told(trainer)

    def on_test_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._stop_if_told(trainer)

    def _agreed(self, trainer: pl.Trainer, wish: bool) -> bool:
        """Whether any rank wishes it: all must write together."""
        return wish if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(wish, all=False)

    def _save(self, trainer: pl.Trainer) -> None:
        if not torch.nn.utils.get_total_norm(trainer.lightning_module.parameters()).isfinite():
            return  # what is there is better
        _flush(trainer)  # what the checkpoint follows on must be on disk too
        trainer.save_checkpoint(self.file)
        self.written = time.monotonic()

    def _stop_if_told(self, trainer: pl.Trainer) -> None:
        told = self.received or 0
        if trainer.world_size > 1:  # a rank may not have been told yet
            number = torch.tensor(told, device=trainer.strategy.root_device)
            told = int(trainer.strategy.reduce(number, reduce_op="max"))
        if told == signal.SIGINT:
            raise KeyboardInterrupt
        if told == getattr(signal, "SIGUSR1", None):
            rank_zero_only(requeue)()
        if told:
            raise TerminatedError


def _flush(trainer: pl.Trainer) -> None:
    for logger in trainer.loggers:
        logger.save()


def _validation_follows(trainer: pl.Trainer) -> bool:
    # The end of an epoch counts as one: what belongs to it has not been done yet.
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return trainer.is_last_batch or loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def _run_ends(trainer: pl.Trainer) -> bool:
    return trainer.should_stop or 0 < (trainer.max_epochs or -1) <= trainer.current_epoch + 1
