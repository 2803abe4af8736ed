"""The story of a sweep: jobs out of overrides, processes, and what came of them."""

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vitlab.config.instantiate import targets
from vitlab.errors import TerminatedError, UserError
from vitlab.files import shorten
from vitlab.leaderboard.build import make_leaderboard
from vitlab.sweeps.display import SweepDisplay
from vitlab.sweeps.executors import Executor
from vitlab.sweeps.grid import Grid
from vitlab.sweeps.job import Job, quoted
from vitlab.sweeps.retyping import to_go_on
from vitlab.sweeps.runner import Plan, Runner
from vitlab.sweeps.sweep_file import FILE, read_record, sweep_lock, write_record

# Typed for the sweep itself, or decided by it.
NOT_FOR_JOBS = (
    "hydra.sweep.",
    "hydra.run.",
    "hydra.launcher.",
    "hydra.sweeper.",
    "hydra.mode",
    "hydra/launcher",
    "hydra/sweeper",
)


@dataclass
class Sweep:
    """A sweep's folder, and how its jobs are typed.

    Args:
        folder: `hydra.sweep.dir`, absolute.
        hydra: Hydra's node of the sweep's config.
        compose: The config of a job with Hydra's node, from its overrides.
    """

    folder: Path
    hydra: DictConfig
    compose: Callable[[Sequence[str]], DictConfig]

    @property
    def arguments(self) -> list[str]:
        """What the user typed behind `-m`, without the folder."""
        hydras, own = (OmegaConf.to_container(self.hydra.overrides[k], resolve=False) for k in ("hydra", "task"))
        typed = [*self._flags(), *hydras, *own]  # type: ignore[misc]
        return [
            str(argument) for argument in typed if not str(argument).startswith(("hydra.sweep.dir=", "hydra.mode="))
        ]

    def job(self, number: int, overrides: Sequence[str], varied: Iterable[str] = ()) -> Job:
        """A job, from its composed config.

        Args:
            number: Of the job.
            overrides: What is typed for it.
            varied: Keys that tell it from others; its name has their values.
        """
        config = self.compose(overrides)
        config.hydra.job.num, config.hydra.job.id = number, str(number)
        epochs = config.trainer.max_epochs
        shown = [o for o in overrides if o.split("=")[0].lstrip("+~") in varied] or list(overrides)
        return Job(
            number,
            list(overrides),
            self._job_folder(str(config.hydra.sweep.subdir)),
            devices=_number_of_devices(config.trainer.devices),
            epochs=epochs if epochs and epochs > 0 and config.trainer.max_steps < 0 else None,
            monitor=config.checkpoint.monitor,
            trusted=sorted(set(targets(OmegaConf.to_container(OmegaConf.masked_copy(config, _own_keys(config)))))),
            name=" ".join(map(_shortened, shown)),
        )

    def _job_folder(self, subdir: str) -> Path:
        folder = Path(os.path.normpath(self.folder / subdir))
        if not folder.is_relative_to(self.folder) or folder == self.folder:
            raise UserError(f"hydra.sweep.subdir={subdir}: a job's directory lies in that of its sweep")
        return folder

    def command(self, job: Job) -> list[str]:
        """What a job's process runs: a run that goes on, or a new one, for which room is made."""
        start = [sys.executable, str(Path(sys.argv[0]).absolute())]
        job.wait_until_left()
        if job.stage() == "begun":
            return job.resuming(start)
        job.make_room(self.folder)
        return [*start, *self._flags(), *self._for_jobs(), *job.overrides, f"hydra.run.dir={quoted(str(job.folder))}"]

    def _for_jobs(self) -> list[str]:
        """What was typed for Hydra and holds for the jobs too."""
        typed: Any = OmegaConf.to_container(self.hydra.overrides.hydra, resolve=False)
        return [argument for argument in typed if not argument.lstrip("+~").startswith(NOT_FOR_JOBS)]

    def _flags(self) -> list[str]:
        """`--config-dir` and `--config-name`, where they were given."""
        folders = [s.path for s in self.hydra.runtime.config_sources if s.provider == "command-line"]
        named = self.hydra.job.config_name
        return [
            *(f"--config-dir={folder}" for folder in folders),
            *([f"--config-name={named}"] if named != "train" else []),
        ]


def run_grid(sweep: Sweep, engine: Executor, all_overrides: Sequence[Sequence[str]]) -> None:
    """Runs each job that is not finished yet.

    A folder that holds the sweep already is gone on with: jobs are known by their overrides, new ones get new numbers.

    Raises:
        UserError: another process runs the sweep, or its folder holds something else.
        KeyboardInterrupt, TerminatedError: it was stopped.
        SystemExit: 1, when a job failed.
    """
    with sweep_lock(sweep.folder):
        jobs = planned_jobs(sweep, all_overrides)
        for job in jobs:
            if job.stage() == "finished":
                job.status = "done"
        conduct(sweep, engine, Grid(jobs), f"{len(jobs)} jobs")


def planned_jobs(sweep: Sweep, all_overrides: Sequence[Sequence[str]]) -> list[Job]:
    """The jobs, with the numbers that they had before.

    Raises:
        UserError: two jobs would share a directory, or there is something else where one goes.
    """
    known = {frozenset(row["overrides"]): row["number"] for row in known_jobs(sweep.folder)}
    free = max(known.values(), default=-1) + 1
    varied = varied_keys(all_overrides)
    jobs: list[Job] = []
    for overrides in dict.fromkeys(map(tuple, all_overrides)):
        number = known.get(frozenset(overrides))
        if number is None:
            number, free = free, free + 1
        jobs.append(sweep.job(number, overrides, varied))
        check_place(sweep.folder, jobs)
    return jobs


def check_place(sweep: Path, jobs: Sequence[Job]) -> None:
    """Refuses the last of the jobs where another one, or something that is none of the sweep's, has its folder.

    Raises:
        UserError: saying which.
    """
    *others, job = jobs
    for other in others:
        if job.folder == other.folder or job.folder in other.folder.parents or other.folder in job.folder.parents:
            raise UserError(
                f"jobs {other.number} and {job.number} would share {shorten(job.folder)}: hydra.sweep.subdir must tell "
                "them apart, as ${hydra.job.num} does"
            )
    if not any(row["number"] == job.number for row in known_jobs(sweep)) and any(job.folder.glob("*")):
        raise UserError(
            f"{shorten(job.folder)} holds something else: choose another directory with hydra.sweep.dir=..."
        )


def known_jobs(folder: Path) -> list[dict[str, Any]]:
    """The rows of `sweep.json`; none where the folder holds no sweep yet."""
    return read_record(folder)["jobs"] if (folder / FILE).exists() else []


def varied_keys(all_overrides: Sequence[Sequence[str]]) -> set[str]:
    """Keys with more than one value among jobs."""
    values: dict[str, set[str]] = {}
    for overrides in all_overrides:
        for override in overrides:
            key, _, value = override.partition("=")
            values.setdefault(key.lstrip("+~"), set()).add(value)
    return {key for key, found in values.items() if len(found) > 1}


def conduct(sweep: Sweep, engine: Executor, plan: Plan, what: str) -> None:
    """Runs a plan, keeps `sweep.json`, and makes the leaderboard; see `run_grid`.

    Args:
        sweep, engine, plan: What is run where.
        what: Said at the start.
    """
    earlier = known_jobs(sweep.folder)

    def record() -> None:
        numbers = {job.number for job in plan.jobs}
        others = [as_recorded(sweep.folder, row) for row in earlier if row["number"] not in numbers]
        write_record(sweep.folder, sweep.arguments, [*others, *plan.jobs])

    record()
    finished_before = sum(job.status == "done" for job in plan.jobs)
    with SweepDisplay(f"sweep {shorten(sweep.folder)}") as display:
        display.jobs = list(plan.jobs)
        display.say(f"sweep: {what}" + (f", {finished_before} of them finished before" if finished_before else ""))
        display.say(f"sweep directory: {shorten(sweep.folder)}")
        try:
            Runner(plan, engine, sweep.command, display, record).run()
        except (KeyboardInterrupt, TerminatedError):
            display.say("interrupted; to go on:")
            display.say(f"  {to_go_on(sweep.arguments, sweep.folder)}")
            raise
    make_leaderboard([sweep.folder])
    undone = [job for job in plan.jobs if job.status in ("failed", "interrupted")]
    if undone:
        display.say(f"{len(undone)} of {len(plan.jobs)} jobs failed or were interrupted; to make them again:")
        display.say(f"  {to_go_on(sweep.arguments, sweep.folder)}")
        sys.exit(1)


def as_recorded(folder: Path, row: dict[str, Any]) -> Job:
    return Job(row["number"], row["overrides"], folder / row["folder"], status=row["status"], reason=row["reason"])


def _shortened(override: str) -> str:
    """`optimizer.lr=0.001235` of a value with all its digits."""
    key, _, value = override.partition("=")
    return f"{key}={float(value):.4g}" if re.fullmatch(r"-?\d+\.\d{5,}(e-?\d+)?", value) else override


def _own_keys(config: DictConfig) -> list[str]:
    return [str(key) for key in config if key != "hydra"]


def _number_of_devices(devices: Any) -> int:
    """Of `trainer.devices`; 0 for all that there are.

    Raises:
        UserError: it names devices.
    """
    number = {"auto": 1, "-1": 0}.get(str(devices), devices)
    if not str(number).isdigit():
        raise UserError(
            f"trainer.devices={devices} names devices: in a sweep say how many each job needs, and with "
            "CUDA_VISIBLE_DEVICES which of them the sweep has"
        )
    return int(number)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def whole(key: str, value: Any, *, or_auto: bool = False) -> Any:
    """The value of a key that takes a whole number of at least 1.

    Raises:
        UserError: it has another one.
    """
    if (or_auto and value == "auto") or (isinstance(value, int) and value >= 1):
        return value
    raise UserError(f"{key}={value} must be a whole number of at least 1{', or auto' if or_auto else ''}")
