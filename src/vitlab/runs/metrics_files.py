"""Read and write `metrics.csv`; continue a run's curves in its logger.

Epochs count from 1. Versions before manifest format 2 counted them from 0; their files are converted on reading.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from vitlab.distributed.process import this_process
from vitlab.files import write_csv

Row = dict[str, float]
# The key that identifies a run in a logger, by the logger's class.
RUN_ID_KEYS = {"WandbLogger": "id", "MLFlowLogger": "run_id"}


def shorten_values(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics as they are written: floats as the shortest decimal numbers with the same float32 values (0.956, where
    float(tensor) is 0.9559999704360962), except `seconds`, which float32 would round."""
    return {
        name: float(str(np.float32(value))) if isinstance(value, float) and name != "seconds" else value
        for name, value in metrics.items()
    }


def count_from_one(rows: Sequence[Row]) -> list[Row]:
    """Rows of `metrics.csv` with epochs counted from 1: an earlier version's first row is epoch 0."""
    offset = 1 if rows and rows[0]["epoch"] == 0 else 0
    return [{**row, "epoch": row["epoch"] + offset} for row in rows]


def write_epochs(file: Path, rows: Sequence[Mapping[str, float]], columns: Sequence[str]) -> None:
    """Writes `metrics.csv` whole: a column for epoch, step, seconds and each of `columns`."""
    columns = ("epoch", "step", "seconds", *columns)
    write_csv(file, columns, [[row.get(name) for name in columns] for row in map(shorten_values, rows)])


def logger_run_id(logger: Any) -> dict[str, str]:
    """The id that a logger gave the run, as a key of the config's `logger` group; with it the run is resumed.

    Empty for loggers without ids, and on all ranks except the first.
    """
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
    if step is None:
        return {}
    if target.endswith(".TensorBoardLogger"):
        return {"purge_step": step}
    if target.endswith(".CSVLogger"):
        return {"version": f"{config.version}_from_step_{step}"}  # it would delete its earlier file
    return {}
