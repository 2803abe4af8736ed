"""The state that a run ends with is one to select from."""

from typing import Any

import pytorch_lightning as pl


class FinalValidation(pl.Callback):
    """Validates the state that a run ends with, most often the best one.

    Lightning leaves it out where `check_val_every_n_epoch` does, and where `max_steps` ends the run inside an epoch.
    Belongs behind what ends a run and before what saves it.
    """

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if 0 < trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True  # a run that is told to stop validates first
        ends = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if ends and trainer.check_val_every_n_epoch:
            trainer.check_val_every_n_epoch = 1
