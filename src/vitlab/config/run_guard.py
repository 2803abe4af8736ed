"""What must be in order before Hydra writes anything: the config, and a run directory that nobody else has."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from vitlab.config.check import find_mistakes
from vitlab.config.command import CONF
from vitlab.config.sources import place_of


class RunGuard(Callback):
    """Hydra's callback at the start of a run: the last moment at which `.hydra/` and `run.log` are still an old run's.

    Hydra turns a callback's exceptions into warnings, but for SystemExit.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        HydraConfig.instance().set_config(config)  # run.dir may ask it for the choices; Hydra sets it later on
        if not _is_first_process(config):
            return
        refuse_mistakes(config)
        _claim_folder(config)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.hydra.mode == RunMode.MULTIRUN:  # a single run was checked before its folder was made
            refuse_mistakes(config)


def refuse_mistakes(config: DictConfig) -> None:
    """Prints the mistakes of a composed config, a line each, and ends the process with status 2 where there are any."""
    lines = describe_mistakes(config)
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    if lines:
        sys.exit(2)


def describe_mistakes(config: DictConfig) -> list[str]:
    """A sentence for each mistake of a composed config (with Hydra's own node) that says where it stands."""
    overrides = list(config.hydra.overrides.task)
    job = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    lines = []
    for mistake in find_mistakes(job, overrides):
        file = place_of(mistake.path, CONF, config.hydra.job.config_name, overrides)
        lines.append(f"{mistake.subject}{f' in {file}' if file else ''}{mistake.rest}")
    return lines


def _is_first_process(config: DictConfig) -> bool:
    """Not one that Lightning (`hydra.output_subdir=null`) or torchrun (a rank) started for the same run."""
    return config.hydra.output_subdir is not None and os.environ.get("RANK", "0") == "0"


def _claim_folder(config: DictConfig) -> None:
    """Refuses a folder that holds a run; one that was named by the time gets a number where another run has that."""
    folder = Path(config.hydra.run.dir)
    if _typed(config.hydra.overrides.hydra, "hydra.run.dir"):
        if (folder / "manifest.json").exists():
            print(
                f"error: {folder} holds a run already: choose another directory with hydra.run.dir=...", file=sys.stderr
            )
            sys.exit(2)
        return
    claimed, count = folder, 1
    while True:
        try:
            claimed.mkdir(parents=True)  # of two runs that start in the same second one succeeds
            break
        except FileExistsError:
            count += 1
            claimed = folder.with_name(f"{folder.name}_{count}")
        except OSError:  # named by the run itself
            break
    with read_write(config.hydra), open_dict(config.hydra.run):
        config.hydra.run.dir = str(claimed)


def _typed(overrides: Sequence[str], key: str) -> bool:
    return any(override.lstrip("+").startswith(f"{key}=") for override in overrides)
