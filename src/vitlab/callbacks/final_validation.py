"""End a run after `max_steps`, and validate its last state."""

from typing import Any

import pytorch_lightning as pl


class FinalValidation(pl.Callback):
    """Ends a run after the classifier's `max_steps`, and validates the last state of every run, often the best one.

    Lightning skips that validation if `check_val_every_n_epoch` does, or if `max_steps` ends the run inside an epoch.
    Belongs after the callbacks that end a run, and before those that save it.
    """

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if 0 < pl_module.max_steps <= checkpoint["global_step"]:
            trainer.should_stop = True  # resumed at its end

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if 0 < pl_module.max_steps <= trainer.global_step:
            trainer.should_stop = True  # Lightning validates before it stops
        ends = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if ends and trainer.check_val_every_n_epoch:
            trainer.check_val_every_n_epoch = 1
