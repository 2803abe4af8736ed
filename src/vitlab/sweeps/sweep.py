"""Turn the overrides of a sweep into jobs with directories and commands."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vitlab.config.instantiate import targets
from vitlab.errors import UserError
from vitlab.files import shorten
from vitlab.sweeps.job import Job, quote
from vitlab.sweeps.sweep_record import recorded_jobs

# Hydra's keys that apply to the sweep, not to its jobs.
SWEEP_KEYS = (
    *("hydra.sweep.", "hydra.run.", "hydra.launcher.", "hydra.sweeper.", "hydra.mode"),
    *("hydra/launcher", "hydra/sweeper"),
)


@dataclass
class Sweep:
    """A sweep's directory, and how its jobs are composed and started.

    Args:
        folder: `hydra.sweep.dir`, absolute.
        hydra: Hydra's node of the sweep's config.
        compose: Returns a job's config, with Hydra's node, from its overrides.
        compare: Called with the directory after the last job, to compare the runs.
    """

    folder: Path
    hydra: DictConfig
    compose: Callable[[Sequence[str]], DictConfig]
    compare: Callable[[Path], Any] = lambda folder: None

    @property
    def arguments(self) -> list[str]:
        """The sweep's command line after `-m`, without its directory."""
        given = [*self._config_flags(), *self._given("hydra"), *self._given("task")]
        return [argument for argument in given if not argument.startswith(("hydra.sweep.dir=", "hydra.mode="))]

    def job(self, number: int, overrides: Sequence[str], common: Sequence[str] = ()) -> Job:
        """Compose a job.

        Args:
            number: Its number.
            overrides: Its overrides.
            common: Overrides that all jobs share; its name leaves them out.

        Raises:
            UserError: Its directory is not inside the sweep's, or `trainer.devices` names devices.
        """
        config = self.compose(overrides)
        config.hydra.job.num, config.hydra.job.id = number, str(number)
        subdir, epochs = config.hydra.sweep.subdir, config.trainer.max_epochs
        folder = Path(os.path.normpath(self.folder / str(subdir)))
        if self.folder not in folder.parents:
            raise UserError(f"hydra.sweep.subdir={subdir}: a job's directory must be inside the sweep's directory")
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        shown = [override for override in overrides if override not in common] or overrides
        return Job(
            number,
            list(overrides),
            folder,
            devices=_number_of_devices(config.trainer.devices),
            epochs=epochs if epochs and epochs > 0 and config.trainer.max_steps < 0 else None,
            monitor=config.checkpoint.monitor,
            trusted=sorted(set(targets(OmegaConf.to_container(own)))),
            name=" ".join(map(_shorten_number, shown)),
        )

    def command(self, job: Job) -> list[str]:
        """Return the command that resumes a job, or that starts it in an empty directory."""
        start = [sys.executable, str(Path(sys.argv[0]).absolute())]
        job.wait_for_writer()
        if job.stage() == "started":
            return job.resume_command(start)
        job.set_aside_earlier_attempt(self.folder)
        hydra = [argument for argument in self._given("hydra") if not argument.lstrip("+~").startswith(SWEEP_KEYS)]
        return [*start, *self._config_flags(), *hydra, *job.overrides, f"hydra.run.dir={quote(str(job.folder))}"]

    def _given(self, kind: str) -> list[str]:
        """Return the overrides on the command line; `kind` is "hydra" or "task"."""
        overrides: Any = OmegaConf.to_container(self.hydra.overrides[kind], resolve=False)
        return list(map(str, overrides))

    def _config_flags(self) -> list[str]:
        """Return `--config-dir` and `--config-name` if they were given."""
        folders = [s.path for s in self.hydra.runtime.config_sources if s.provider == "command-line"]
        name = self.hydra.job.config_name
        flags = [f"--config-dir={folder}" for folder in folders]
        return flags if name == "train" else [*flags, f"--config-name={name}"]


def plan_jobs(sweep: Sweep, all_overrides: Sequence[Sequence[str]]) -> list[Job]:
    """Compose the jobs, with the numbers that they had before.

    Raises:
        UserError: Two jobs would share a directory, or a job's directory holds other files.
    """
    known = {frozenset(job.overrides): job.number for job in recorded_jobs(sweep.folder)}
    free = max(known.values(), default=-1) + 1
    common = list(set.intersection(*map(set, all_overrides)))
    jobs: list[Job] = []
    for overrides in dict.fromkeys(map(tuple, all_overrides)):
        number = known.get(frozenset(overrides))
        if number is None:
            number, free = free, free + 1
        jobs.append(sweep.job(number, overrides, common))
        check_job_folder(sweep.folder, jobs)
    return jobs


def check_job_folder(sweep: Path, jobs: Sequence[Job]) -> None:
    """Check that the last job's directory belongs to it alone.

    Raises:
        UserError: Another job uses it, or it holds files that are not from this sweep.
    """
    *others, job = jobs
    for other in others:
        if job.folder.is_relative_to(other.folder) or other.folder.is_relative_to(job.folder):
            raise UserError(
                f"jobs {other.number} and {job.number} would share {shorten(job.folder)}: hydra.sweep.subdir must "
                "differ between jobs, as ${hydra.job.num} does"
            )
    if all(known.number != job.number for known in recorded_jobs(sweep)) and any(job.folder.glob("*")):
        raise UserError(f"{shorten(job.folder)} holds other files: choose another directory with hydra.sweep.dir=...")


def _shorten_number(override: str) -> str:
    """Return `optimizer.lr=0.001235` for a value with more digits."""
    key, _, value = override.partition("=")
    return f"{key}={float(value):.4g}" if re.fullmatch(r"-?\d+\.\d{5,}(e-?\d+)?", value) else override


def _number_of_devices(devices: Any) -> int:
    """Return the number of devices that `trainer.devices` asks for; 0: all."""
    number = {"auto": 1, "-1": 0}.get(str(devices), devices)
    if not str(number).isdigit():
        raise UserError(
            f"trainer.devices={devices} names devices: in a sweep give the number that each job needs, and choose the "
            "devices of the sweep with CUDA_VISIBLE_DEVICES"
        )
    return int(number)
