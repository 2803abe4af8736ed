"""Build the loggers of a run, and continue its curves in them."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from vitlab.config.instantiate import build
from vitlab.distributed.process import this_process

# The key that identifies a run in a logger, by the logger's class.
RUN_ID_KEYS = {"WandbLogger": "id", "MLFlowLogger": "run_id"}


def build_loggers(group: DictConfig | None, step: int | None) -> dict[str, Any]:
    """Build the loggers of a config's `logger` group by their names in it; one alone needs no name, and gets "".

    Loggers of Lightning's keep their values before `step`, at which a run resumes, and append to them. A new run has no
    step.
    """
    nodes = {"": group} if group and "_target_" in group else group or {}
    chosen = {str(name): node for name, node in nodes.items() if node is not None}
    return {
        name: build(node, f"logger.{name}".rstrip("."), **_resume_kwargs(node, step)) for name, node in chosen.items()
    }


def logger_run_ids(loggers: Mapping[str, Any]) -> dict[str, Any]:
    """The ids that loggers gave the run, as keys of the config's `logger` group; only on rank 0, if they give any."""
    found: dict[str, Any] = {}
    for name, logger in loggers.items() if this_process().is_rank_zero else ():
        if key := RUN_ID_KEYS.get(type(logger).__name__):
            run_id = {key: logger.experiment.id if key == "id" else logger.run_id}
            found |= {name: run_id} if name else run_id
    return found


def clear_logger_run_ids(group: Mapping[str, Any]) -> dict[str, Any]:
    """A config's `logger` group without the ids, for a new run."""
    kept = {key: None if key in RUN_ID_KEYS.values() else value for key, value in group.items()}
    return {key: clear_logger_run_ids(value) if isinstance(value, Mapping) else value for key, value in kept.items()}


def _resume_kwargs(node: DictConfig, step: int | None) -> dict[str, Any]:
    # wandb and MLflow find the run by its id, and also keep the values after the step.
    target = str(node.get("_target_"))
    if step is not None and target.endswith("TensorBoardLogger"):
        return {"purge_step": step}
    if step is not None and target.endswith(".CSVLogger") and node.get("version"):
        return {"version": f"{node.version}_from_step_{step}"}  # it would delete its earlier file
    return {}
