"""Write metrics.csv: one row per epoch."""

import logging
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from vitlab.callbacks.checkpointing import SortedCallback
from vitlab.runs.directory import count_from_one, write_epochs
from vitlab.system import WINDOWS

log = logging.getLogger(__name__)

CSV_COLUMNS = (  # first, and in this order; those of other metrics follow
    *("train/loss", "train/acc", "val/loss", "val/acc", "val/loss_ema", "val/acc_ema", "lr"),
    *("images_per_second", "data_wait", "memory_gib", "mfu", "skipped_steps"),
)


class MetricsCSV(SortedCallback, Checkpoint):
    """Writes `epoch, step, seconds` and the epoch's metrics as a row of a CSV file; each write replaces the file.

    It is a Checkpoint because Lightning calls those after the module has logged the metrics of an epoch.
    """

    callback_position = 2  # before the checkpoints, so that those of an epoch contain its row

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[dict[str, float]] = []
        self.validated = False
        self.seconds = 0.0  # of training before this process
        self.started = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self.rows), "validated": self.validated, "seconds": time.perf_counter() - self.started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Rows that were written after the checkpoint are dropped: a resumed run repeats their epochs.
        self.rows = count_from_one(state_dict["rows"])
        self.validated = state_dict["validated"]
        self.seconds = state_dict["seconds"]

    def on_train_start(self, *_: Any) -> None:
        self.started = time.perf_counter() - self.seconds

    def on_train_epoch_start(self, *_: Any) -> None:
        self.validated = False

    def on_validation_end(self, *_: Any) -> None:
        self.validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = trainer.callback_metrics
        # Without a validation in this epoch, Lightning keeps the metrics of an earlier one.
        columns = [
            name for name in metrics if (self.validated or not name.startswith("val/")) and not name.startswith("test/")
        ]
        seconds = round(time.perf_counter() - self.started, 3)
        row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "seconds": seconds}
        self.rows.append({**row, **{name: float(metrics[name]) for name in columns}})
        if trainer.is_global_zero:
            logged = [name for row in self.rows for name in row if name not in ("epoch", "step", "seconds")]
            try:
                write_epochs(self.file, self.rows, list(dict.fromkeys([*CSV_COLUMNS, *logged])))
            except PermissionError:
                if not WINDOWS:
                    raise
                log.warning(f"{self.file} is open in another program; its new rows are written after the next epoch")
