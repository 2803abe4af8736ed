"""Check the config and claim the run directory before Hydra writes anything."""

import logging.config
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from vitlab.config.compose import (
    NOT_COMPOSED,
    covering_jobs,
    describe_mistakes,
    explain,
    refuse,
    sweep_jobs,
    typed_overrides,
)
from vitlab.distributed.process import broadcast_from_rank0, this_process
from vitlab.errors import UserError


class RunGuard(Callback):
    """Hydra's callback before a run: the last moment at which `.hydra/` and `run.log` are still an old run's."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        HydraConfig.instance().set_config(config)  # run.dir may ask it for the choices; Hydra sets it later
        me = this_process()
        with _exit_on_error():
            if me.is_rank_zero:
                _refuse_mistakes(describe_mistakes(config))
            folder = broadcast_from_rank0("folder", lambda: _claim_folder(config))
            with read_write(config.hydra), open_dict(config.hydra):
                config.hydra.run.dir = folder
                if not me.is_rank_zero:  # rank 0 writes what belongs to the run; the others have logs of their own
                    file = me.log_file(Path(folder))
                    file.parent.mkdir(parents=True, exist_ok=True)
                    config.hydra.output_subdir = None
                    config.hydra.job_logging = log_settings(config.hydra.job_logging, file)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check all jobs before the first one trains."""
        with _exit_on_error():
            loader = GlobalHydra.instance().config_loader()
            lines = []
            for overrides in _jobs(config):
                try:
                    job = loader.load_sweep_config(config, overrides)
                except NOT_COMPOSED as error:
                    lines.append(explain(error))
                    continue
                HydraConfig.instance().set_config(job)
                lines += describe_mistakes(job)
            _refuse_mistakes(lines)


def _jobs(config: DictConfig) -> list[list[str]]:
    """The overrides of a sweep's jobs; for a search, of some jobs that cover its choices."""
    sweeper, typed = config.hydra.sweeper, typed_overrides(config.hydra)
    params: Any = OmegaConf.to_container(sweeper.params) if sweeper.get("params") else {}
    if "n_trials" in sweeper:
        return covering_jobs(params, OmegaConf.to_container(sweeper.when), typed)  # type: ignore[arg-type]
    return sweep_jobs([*(f"{key}={value}" for key, value in params.items()), *typed])


def _refuse_mistakes(lines: list[str]) -> None:
    if lines:
        refuse(list(dict.fromkeys(lines)))


@contextmanager
def _exit_on_error() -> Iterator[None]:
    """End the process at any exception: Hydra turns a callback's exceptions into warnings and continues."""
    try:
        yield
    except UserError as error:
        refuse([str(error)])
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _claim_folder(config: DictConfig) -> str:
    """Create the run directory; if another run has the name, which is the time, a number is appended.

    A directory from the command line is only checked.
    """
    folder = Path(config.hydra.run.dir)
    if any(override.lstrip("+").startswith("hydra.run.dir=") for override in config.hydra.overrides.hydra):
        if (folder / "manifest.json").exists():
            raise UserError(f"{folder} holds a run already: choose another directory with hydra.run.dir=...")
        return str(folder)
    claimed, count = folder, 1
    while True:
        try:
            claimed.mkdir(parents=True)  # of two runs that start in the same second one succeeds
            return str(claimed)
        except FileExistsError:
            count += 1
            claimed = folder.with_name(f"{folder.name}_{count}")
        except OSError:  # the run itself reports it
            return str(claimed)


def log_to(run: Path, conf: Path) -> None:
    """Starts logging to a run's `run.log` in a process without Hydra, with the settings that Hydra would use."""
    file = this_process().log_file(run)
    file.parent.mkdir(parents=True, exist_ok=True)
    logging.config.dictConfig(log_settings(OmegaConf.load(conf / "hydra" / "job_logging" / "run_log.yaml"), file))


def log_settings(settings: Any, file: Path) -> dict[str, Any]:
    """The logging settings of `conf/hydra/job_logging` with this log file; only rank 0 writes to the terminal."""
    assert isinstance(settings, DictConfig)
    handlers = settings.get("handlers", {})  # the user's own settings may lack these
    if "file" in handlers:
        handlers.file.filename = str(file)
    if "console" in handlers and not this_process().is_rank_zero:
        handlers.console.level = "CRITICAL"
    plain: Any = OmegaConf.to_container(settings, resolve=True)
    return dict(plain)
