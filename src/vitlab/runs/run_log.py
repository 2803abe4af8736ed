"""The run's log without Hydra."""

import logging.config
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def log_to(file: Path, conf: Path) -> None:
    """Adds to a run's log, as Hydra's settings in the folder of YAML files have it for a run of its own."""
    settings: Any = OmegaConf.to_container(OmegaConf.load(conf / "hydra" / "job_logging" / "run_log.yaml"))
    settings["handlers"]["file"]["filename"] = str(file)
    logging.config.dictConfig(settings)
