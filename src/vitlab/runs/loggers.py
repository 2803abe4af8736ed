"""A run's stream of values in its dashboard, which a run that goes on adds to."""

from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only

# By a logger's class, the key that names a run in it.
NAMES = {"WandbLogger": "id", "MLFlowLogger": "run_id"}


@rank_zero_only
def save_logger_run_id(trainer: pl.Trainer, resolved: dict[str, Any]) -> None:
    """Writes the name that the run has got in its logger into the config, with which it is gone on with."""
    for logger in trainer.loggers:
        key = NAMES.get(type(logger).__name__)
        if key is not None:
            begun: Any = logger
            resolved["logger"][key] = begun.experiment.id if key == "id" else begun.run_id


def clear_logger_run_id(logger: DictConfig) -> None:
    """Takes the name out of a config again, for a run of its own."""
    for key in NAMES.values():
        if key in logger:
            logger[key] = None


def resume_kwargs(logger: DictConfig, step: int | None) -> dict[str, Any]:
    """What makes a logger of Lightning's add to what it has written before a step, and only that.

    wandb and MLflow go on by the run's name, and keep what they were given after that step too.
    """
    target = str(logger.get("_target_"))
    if step is None:
        return {}
    if target.endswith(".TensorBoardLogger"):
        return {"purge_step": step}  # later values come again
    if target.endswith(".CSVLogger"):
        return {"version": f"{logger.version}_from_step_{step}"}  # it would delete its file
    return {}
