"""Continue a run's curves in its logger."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from vitlab.distributed.process import this_process

# The key that identifies a run in a logger, by the logger's class.
RUN_ID_KEYS = {"WandbLogger": "id", "MLFlowLogger": "run_id"}


def logger_run_id(logger: Any) -> dict[str, str]:
    """The id that a logger gave the run, as a key of the config's `logger` group; only on rank 0, if it gives any."""
    key = RUN_ID_KEYS.get(type(logger).__name__)
    if key is None or not this_process().is_rank_zero:
        return {}
    return {key: logger.experiment.id if key == "id" else logger.run_id}


def clear_logger_run_id(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config's `logger` group without the id, for a new run."""
    return {key: None if key in RUN_ID_KEYS.values() else value for key, value in config.items()}


def resume_kwargs(config: DictConfig, step: int | None) -> dict[str, Any]:
    """Arguments with which a Lightning logger keeps its values before a step and appends to them.

    wandb and MLflow find the run by its id, and also keep the values after that step. A new run has no step.
    """
    target = str(config.get("_target_"))
    if step is not None and target.endswith(".TensorBoardLogger"):
        return {"purge_step": step}
    if step is not None and target.endswith(".CSVLogger"):
        return {"version": f"{config.version}_from_step_{step}"}  # it would delete its earlier file
    return {}
