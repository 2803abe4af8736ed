"""Save checkpoints, stop on signals, validate the last weights."""

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_only, rank_zero_warn

from vitlab.compat import validation_follows
from vitlab.distributed.process import requeue
from vitlab.errors import TerminatedError
from vitlab.metrics import ALWAYS, metric_name
from vitlab.runs.directory import rebase_paths
from vitlab.system import SIGHUP, SIGUSR1, stop_signals

SYNC_EVERY = 10  # optimizer steps between two questions to the other ranks

# Metric names for comparing runs. TensorBoard's HPARAMS tab selects the first five by name.
BEST = {
    "val/acc": "best/acc",
    "test/acc": "best/acc_test",
    "epoch": "best/epoch",
    "val/loss": "best/loss",
    "test/loss": "best/loss_test",
    "val/acc_ema": "best/ema_acc",
    "test/acc_ema": "best/ema_acc_test",
}


class SortedCallback(pl.Callback):
    """A callback whose work depends on the others: their order in a config does not matter.

    All are sorted by their attribute `callback_position`; it is 0 without one, and 3 for Lightning's Checkpoints.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        def position(callback: pl.Callback) -> int:
            return getattr(callback, "callback_position", 3 if isinstance(callback, Checkpoint) else 0)

        trainer.callbacks = sorted(trainer.callbacks, key=position)  # type: ignore[attr-defined]


def best_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of the best epoch, by the names under which runs are compared; further ones as `best/of_f1_test`."""
    further = {
        f"best/of_{'ema_' * key.endswith('_ema')}{metric_name(key)}{'_test' * key.startswith('test/')}": value
        for key, value in metrics.items()
        if key.startswith(("val/", "test/")) and metric_name(key) not in ALWAYS
    }
    return {best: metrics[name] for name, best in BEST.items() if name in metrics} | further


class EpochCheckpoint(ModelCheckpoint):
    """Saves epochs as Lightning's ModelCheckpoint does, but counts them from 1 in file names, and goes on after the run
    directory was moved: Lightning's then forgets the best score and overwrites files with worse weights."""

    def format_checkpoint_name(self, metrics: dict[str, Any], *args: Any, **kwargs: Any) -> str:
        return super().format_checkpoint_name({**metrics, "epoch": metrics["epoch"] + 1}, *args, **kwargs)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        before, now = str(state_dict["dirpath"]), str(self.dirpath)
        kept = {rebase_paths(path, before, now): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**rebase_paths(state_dict, before, now), "best_k_models": kept})


class BestCheckpoint(EpochCheckpoint):
    """Saves the best epoch and logs its validation metrics: `best/acc`, `best/loss` and `best/epoch`."""

    validated_at = -1  # step of the last validation

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save_and_log(super().on_train_epoch_end, trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validated_at = trainer.global_step
        self._save_and_log(super().on_validation_end, trainer, pl_module)

    def _save_and_log(self, save: Callable[..., None], trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        before = self.best_model_score
        save(trainer, pl_module)
        if self.best_model_score is not before:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            if self.validated_at != trainer.global_step:  # those are an earlier epoch's
                metrics = {name: value for name, value in metrics.items() if not name.startswith("val/")}
            values = best_metrics({**metrics, "epoch": trainer.current_epoch + 1})
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step - 1)  # the step of the epoch's other metrics


class FinalValidation(SortedCallback):
    """Ends a run after the classifier's `max_steps`, and validates the final weights of a run, usually the best.

    Lightning skips this validation if `check_val_every_n_epoch` or `val_check_interval` does, or if `max_steps` ends
    the run within an epoch. A run that is resumed at its end, by `max_steps` or early stopping, ends again.
    """

    callback_position = 1  # after the callbacks that stop a run, before those that save it

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if 0 < pl_module.max_steps <= checkpoint["global_step"]:
            trainer.should_stop = True  # resumed at its end
        for stopper in trainer.callbacks:  # type: ignore[attr-defined]
            state = checkpoint["callbacks"].get(stopper.state_key)
            if isinstance(stopper, EarlyStopping) and state and trainer.state.fn == "fit":
                state["patience"] = stopper.patience  # Lightning would go on with that of the checkpoint
                if (waited := state.get("wait_count", 0)) >= max(stopper.patience, 1):
                    trainer.should_stop = True
                    rank_zero_warn(f"early stopping has ended the run: a patience above {waited} extends it")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        in_last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
        if 0 < pl_module.max_steps <= trainer.global_step or (in_last_epoch and trainer.is_last_batch):
            trainer.should_stop = True  # then Lightning validates before it stops
        if (trainer.should_stop or in_last_epoch) and trainer.check_val_every_n_epoch:
            trainer.check_val_every_n_epoch = 1


class LastCheckpoint(SortedCallback, Checkpoint):
    """Saves a checkpoint every few epochs and minutes, and when the run receives a signal.

    Ctrl-C, SIGTERM, SIGHUP (the terminal was closed; nohup ignores it) and SIGUSR1 (SLURM's warning before the time
    limit, which also requeues the job) stop the run after the current step (one of the next `SYNC_EVERY` of several
    ranks) or the current validation; a second signal stops it at once. Lightning's ModelCheckpoint saves in the middle
    of a step then. If a validation follows a step, the checkpoint is saved after it: a resumed run would skip it.

    Args:
        file: The checkpoint.
        every_n_epochs: Interval at the ends of epochs; the last epoch is always saved.
        every_minutes: Interval within epochs; None for none.
    """

    callback_position = 4  # saves what the others have changed

    def __init__(self, file: Path, *, every_n_epochs: int, every_minutes: float | None) -> None:
        self.file = file
        self.every_n_epochs = every_n_epochs
        self.every_minutes = every_minutes
        self.received: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._listen()  # Lightning has just set its own handlers
        self.saved = time.monotonic()

    def _listen(self, *_: Any, **__: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in stop_signals():
                signal.signal(number, self._receive)

    on_test_start = _listen

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received == number != SIGHUP:  # a closed terminal sends it several times
            raise KeyboardInterrupt
        self.received = self.received or number
        with suppress(OSError):  # the terminal is gone
            os.write(2, b"\nStopping after this step. Interrupt again to stop at once.\n")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        # The end of an epoch is saved later, when all of its metrics are logged.
        if not (trainer.is_last_batch or validation_follows(trainer)):
            self._save_after_step(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not (trainer.sanity_checking or trainer.is_last_batch):
            self._save_after_step(trainer)

    def _save_after_step(self, trainer: pl.Trainer) -> None:
        if trainer.fit_loop.epoch_loop.done:  # the run ends here: saved as the end of an epoch, when all is logged
            return
        if (trainer.fit_loop.epoch_loop.batch_idx + 1) % trainer.accumulate_grad_batches != 0:
            return
        if trainer.world_size > 1 and trainer.global_step % SYNC_EVERY:
            return  # asking the other ranks makes the host wait for the device
        minutes = (time.monotonic() - self.saved) / 60
        due = self.every_minutes is not None and minutes >= self.every_minutes
        if self._any_rank(trainer, due or self.received is not None):
            self._save(trainer)
            self._stop_if_told(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epochs = trainer.current_epoch + 1
        due = epochs % self.every_n_epochs == 0 or trainer.should_stop or epochs == trainer.max_epochs
        if self._any_rank(trainer, due or self.received is not None):
            self._save(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _flush(trainer)  # metrics of the last epoch, which are logged after its checkpoint
        self._stop_if_told(trainer)

    def _any_rank(self, trainer: pl.Trainer, wish: bool) -> bool:
        """Whether any rank wants to save: all ranks save together."""
        return wish if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(wish, all=False)

    def _save(self, trainer: pl.Trainer) -> None:
        if not torch.nn.utils.get_total_norm(trainer.lightning_module.parameters()).isfinite():
            return  # keep the last good checkpoint
        _flush(trainer)  # a resumed run continues these logs
        trainer.save_checkpoint(self.file)
        self.saved = time.monotonic()

    def _stop_if_told(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        received = self.received or 0
        if trainer.world_size > 1:  # another rank may have received it
            number = torch.tensor(received, device=trainer.strategy.root_device)
            received = int(trainer.strategy.reduce(number, reduce_op="max"))
        if received == signal.SIGINT:
            raise KeyboardInterrupt
        if received == SIGUSR1:
            rank_zero_only(requeue)()
        if received:
            raise TerminatedError(received)

    on_train_end = on_test_batch_end = _stop_if_told


def _flush(trainer: pl.Trainer) -> None:
    for logger in trainer.loggers:
        logger.save()
