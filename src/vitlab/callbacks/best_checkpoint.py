"""`best.ckpt`, also of a run whose directory was moved, and the best metrics so far."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from vitlab.runs.rebase import rebase_paths

# By the names of the metrics: so called that TensorBoard's HPARAMS tab, which ticks the first five by name, ticks them.
BEST = {
    "val/acc": "best/acc",
    "test/acc": "best/acc_test",
    "epoch": "best/epoch",
    "val/loss": "best/loss",
    "test/loss": "best/loss_test",
    "val/acc_ema": "best/ema_acc",
    "test/acc_ema": "best/ema_acc_test",
}


class BestCheckpoint(ModelCheckpoint):
    """Logs the metrics of what it keeps, too: validation's `best/acc`, `best/loss`, and `best/epoch`.

    Lightning's forgets the best score where the directory has another name than before, and writes a worse one over the
    file.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        before, now = str(state_dict["dirpath"]), str(self.dirpath)
        kept = {rebase_paths(path, before, now): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**rebase_paths(state_dict, before, now), "best_k_models": kept})

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        values = best_metrics({**metrics, "epoch": trainer.current_epoch + 1})
        for logger in trainer.loggers:  # at the step of the epoch's other metrics
            logger.log_metrics(values, step=trainer.fit_loop.epoch_loop._batches_that_stepped - 1)


def best_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """A selected epoch's metrics, by the names under which runs are compared."""
    return {best: metrics[name] for name, best in BEST.items() if name in metrics}
