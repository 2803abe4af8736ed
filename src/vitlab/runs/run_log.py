"""The run's log, and those of the processes beside its first."""

import logging.config
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vitlab.distributed.process import this_process


def log_to(run: Path, conf: Path) -> None:
    """Adds to a run's log without Hydra, as its settings in the folder of YAML files have it for a run of its own."""
    file = this_process().log_file(run)
    file.parent.mkdir(parents=True, exist_ok=True)
    logging.config.dictConfig(log_settings(OmegaConf.load(conf / "hydra" / "job_logging" / "run_log.yaml"), file))


def log_settings(settings: Any, file: Path) -> dict[str, Any]:
    """The logging settings of `conf/hydra/job_logging`, for a file; of several processes one speaks on the terminal."""
    assert isinstance(settings, DictConfig)
    if "file" in settings.get("handlers", {}):  # not where the user chose settings of his own
        settings.handlers.file.filename = str(file)
    if not this_process().is_rank_zero and "console" in settings.get("handlers", {}):
        settings.handlers.console.level = "CRITICAL"
    plain: Any = OmegaConf.to_container(settings, resolve=True)
    return dict(plain)
