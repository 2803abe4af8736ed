"""A sweep, its jobs, and its record `sweep.json`, from which it resumes."""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from vitlab.arguments.entry_points import this_start
from vitlab.arguments.literals import quote
from vitlab.config.instantiate import targets
from vitlab.errors import UserError
from vitlab.files import expand_home, locked, shorten, write_json
from vitlab.runs.directory import RunDirectory
from vitlab.runs.trust import check_links
from vitlab.system import is_path_like, join_command, quote_for_shell

COMMAND_LINE_ONLY = ("data.cache_dir=", "data.url=")  # never read from a run's files
SAVE_SECONDS = 120  # time for a stopped run to save its checkpoint
EARLIER_ATTEMPTS = "earlier"  # folder in the sweep's directory for failed attempts that were repeated
SWEEP_FILE, STUDY_FILE = "sweep.json", "study.db"
JOB_KEYS = ("number", "overrides", "status", "reason")  # in sweep.json, and "folder"
RESUME = "sweep=resume:"
# Hydra's keys that apply to the sweep, not to its jobs.
SWEEP_KEYS = ("hydra.sweep", "hydra/sweeper", "hydra.launcher.", "hydra/launcher", "hydra.run.", "hydra.mode")
# Those that may come from sweep.json: they only say how the jobs are made.
SAFE_SWEEP_KEYS = (
    *("hydra/sweeper=", "hydra/sweeper/", "hydra/launcher=", "hydra.sweeper."),
    *("hydra.launcher.jobs=", "hydra.sweep.subdir="),
)
GROUPS_WITH_PATHS = ("logger.", "callbacks.", "trainer.")  # these write files to configured paths


@dataclass
class Job:
    """One run of a sweep, in its own process."""

    number: int  # counted from 0; also the name of its directory by default
    overrides: list[str]  # arguments for `train.py`
    folder: Path  # the run directory
    devices: int = 1  # number of devices it needs; 0: all
    epochs: int | None = None  # `trainer.max_epochs`; None if the length is set in another way
    monitor: str = "val/acc"  # metric to show and to optimise
    trusted: Sequence[str] = ()  # targets in its config, which resuming it may build again
    status: Literal["queued", "running", "done", "failed", "interrupted", "pruned"] = "queued"
    reason: str = ""
    name: str = ""
    started: float = 0.0  # time

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.folder)

    @property
    def log(self) -> Path:
        """Output of its process."""
        return self.folder / "terminal.log"

    def stage(self) -> Literal["new", "started", "finished"]:
        """Tell from the run's files how far it got; they are correct even if the sweep was killed.

        A failed run counts as new, because it is repeated from the start.
        """
        try:
            status = self.run.manifest().get("status")
        except UserError:
            return "new"
        if status == "checked" or (status == "finished" and self.run.metrics_file.exists()):
            return "finished"  # "checked" comes from preflight=only
        started = status in ("running", "interrupted") and any(self.run.checkpoints.glob("*.ckpt"))
        return "started" if started else "new"

    def resume_command(self, start: Sequence[str]) -> list[str]:
        """Return the command that resumes the run; `start` is `python train.py`."""
        trust = [f"trusted_targets=[{','.join(self.trusted)}]"] if self.trusted else []
        given = [o.lstrip("+") for o in self.overrides if o.lstrip("+").startswith(COMMAND_LINE_ONLY)]
        best = [] if (self.run.checkpoints / "last.ckpt").exists() else ["checkpoint=best"]
        return [*start, f"resume={quote(str(self.folder))}", *best, *trust, *given]

    def wait_for_writer(self) -> None:
        """Wait until no process writes to the run; a killed sweep may leave one that is still saving."""
        try:
            if (self.folder / ".lock").exists():
                with FileLock(self.folder / ".lock", timeout=SAVE_SECONDS):
                    pass
        except Timeout:
            raise UserError(f"another process is still writing to {shorten(self.folder)}") from None

    def set_aside_earlier_attempt(self, sweep: Path) -> None:
        """Move the files of an attempt that cannot be resumed to `earlier/`, and make an empty directory."""
        if any(self.folder.glob("*")):
            (sweep / EARLIER_ATTEMPTS).mkdir(exist_ok=True)
            name = f"{self.folder.name}_{time.strftime('%Y-%m-%d_%H-%M-%S')}_{time.time_ns() % 1000:03d}"
            self.folder.rename(sweep / EARLIER_ATTEMPTS / name)
        self.folder.mkdir(parents=True, exist_ok=True)

    def epochs_so_far(self) -> list[dict[str, float]]:
        """Return the rows of `metrics.csv`; none if there is no complete file yet."""
        try:
            return self.run.epoch_rows()
        except (OSError, ValueError):
            return []

    def last_lines(self, count: int) -> list[str]:
        """Return the end of its output, without the control characters of the progress bar."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        lines = (re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).rstrip() for line in text.splitlines())
        return [line for line in lines if line][-count:]


@dataclass
class Sweep:
    """A sweep's directory, and how its jobs are composed and started."""

    folder: Path  # `hydra.sweep.dir`, absolute
    hydra: DictConfig  # Hydra's node of the sweep's config
    compose: Callable[[Sequence[str]], DictConfig]  # from a job's overrides to its config, with Hydra's node
    compare: Callable[[Path], Any] = lambda folder: None  # called with the directory after the last job

    @property
    def arguments(self) -> list[str]:
        """The sweep's command line after `-m`, without its directory."""
        given = [*self._config_flags(), *self._given("hydra"), *self._given("task")]
        return [argument for argument in given if not argument.startswith(("hydra.sweep.dir=", "hydra.mode="))]

    def job(self, number: int, overrides: Sequence[str], common: Sequence[str] = ()) -> Job:
        """Compose a job; its name leaves out the overrides that are `common` to all jobs."""
        config = self.compose(overrides)
        config.hydra.job.num, config.hydra.job.id = number, str(number)
        subdir, epochs = config.hydra.sweep.subdir, config.trainer.max_epochs
        folder = Path(os.path.normpath(self.folder / str(subdir)))
        if self.folder not in folder.parents:
            raise UserError(f"hydra.sweep.subdir={subdir}: a job's directory must be inside the sweep's directory")
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        return Job(
            number,
            list(overrides),
            folder,
            devices=_number_of_devices(config.trainer.devices),
            epochs=epochs if epochs and epochs > 0 and config.trainer.max_steps < 0 else None,
            monitor=config.checkpoint.monitor,
            trusted=sorted(set(targets(OmegaConf.to_container(own)))),
            name=job_name(overrides, common),
        )

    def command(self, job: Job) -> list[str]:
        """Return the command that resumes a job, or that starts it in an empty directory."""
        start = [sys.executable, str(Path(sys.argv[0]).absolute())]
        job.wait_for_writer()
        if job.stage() == "started":
            return job.resume_command(start)
        job.set_aside_earlier_attempt(self.folder)
        hydra = [argument for argument in self._given("hydra") if not argument.lstrip("+~").startswith(SWEEP_KEYS)]
        own = [f"hydra.run.dir={quote(str(job.folder))}", "hydra.mode=RUN"]  # files in conf/sweep set MULTIRUN
        return [*start, *self._config_flags(), *hydra, *job.overrides, *own]

    def _given(self, kind: str) -> list[str]:
        """Return the overrides on the command line; `kind` is "hydra" or "task"."""
        overrides: Any = OmegaConf.to_container(self.hydra.overrides[kind], resolve=False)
        return list(map(str, overrides))

    def _config_flags(self) -> list[str]:
        """Return `--config-dir` and `--config-name` if they were given."""
        sources, name = self.hydra.runtime.config_sources, self.hydra.job.config_name
        flags = [f"--config-dir={source.path}" for source in sources if source.provider == "command-line"]
        return flags if name == "train" else [*flags, f"--config-name={name}"]


def plan_jobs(sweep: Sweep, all_overrides: Sequence[Sequence[str]]) -> list[Job]:
    """Compose the jobs, with the numbers that they had before; new jobs get new numbers."""
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
    """Check that the last job's directory belongs to it alone: no other job uses it, and it holds no other files."""
    *others, job = jobs
    for other in others:
        if job.folder.is_relative_to(other.folder) or other.folder.is_relative_to(job.folder):
            raise UserError(
                f"jobs {other.number} and {job.number} would share {shorten(job.folder)}: hydra.sweep.subdir must "
                "differ between jobs, as ${hydra.job.num} does"
            )
    if all(known.number != job.number for known in recorded_jobs(sweep)) and any(job.folder.glob("*")):
        raise UserError(f"{shorten(job.folder)} holds other files: choose another directory with hydra.sweep.dir=...")


def job_name(overrides: Sequence[str], common: Sequence[str]) -> str:
    """Name a job by the overrides that are not `common` to all jobs."""
    return " ".join(map(_shorten_number, [o for o in overrides if o not in common] or overrides))


def _shorten_number(override: str) -> str:
    """Return `optimizer.lr=0.001235` for a value with more digits."""
    override = override.removeprefix("++")
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


def sweep_lock(folder: Path) -> AbstractContextManager[None]:
    """Keep other processes from running the sweep at the same time; refuse links that lead out of its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    check_links(folder)
    return locked(folder, f"another process is running the sweep in {folder}")


def read_record(folder: Path) -> dict[str, Any]:
    """Read `sweep.json`: `arguments` of the command, its working directory `cwd`, and `jobs`."""
    file = folder / SWEEP_FILE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        complete = all({*JOB_KEYS, "folder"} <= set(job) for job in record["jobs"])
        if not complete or not all(isinstance(text, str) for text in (record["cwd"], *record["arguments"])):
            raise ValueError("keys are missing or have the wrong type")
    except FileNotFoundError:
        raise UserError(f"{folder} holds no sweep: there is no {file}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read {file} ({error})") from error
    return record


def recorded_jobs(folder: Path) -> list[Job]:
    """Return the jobs in `sweep.json`; empty if the folder holds no sweep yet."""
    rows = read_record(folder)["jobs"] if (folder / SWEEP_FILE).exists() else []
    return [Job(folder=folder / row["folder"], **{key: row[key] for key in JOB_KEYS}) for row in rows]


def write_record(sweep: Sweep, jobs: Iterable[Job]) -> None:
    """Write the jobs to `sweep.json` in the order of their numbers; of two with one number the last."""
    known = {job.number: job for job in jobs}
    rows = [
        {key: getattr(job, key) for key in JOB_KEYS} | {"folder": str(job.folder.relative_to(sweep.folder))}
        for _, job in sorted(known.items())
    ]
    write_json(sweep.folder / SWEEP_FILE, {"arguments": sweep.arguments, "cwd": str(Path.cwd()), "jobs": rows})


def restore_arguments(arguments: Sequence[str]) -> list[str]:
    """Replace `sweep=resume:<dir>` with the recorded arguments of the sweep in that directory, if they are safe."""
    found = [argument for argument in arguments if argument.startswith(RESUME)]
    if not found:
        return list(arguments)
    folder = Path(expand_home(found[0].removeprefix(RESUME)))
    record = read_record(folder)
    retype = f"give the sweep's full command again, with hydra.sweep.dir={folder}"
    unsafe = [argument for argument in record["arguments"] if not _is_safe(argument)]
    if unsafe:
        raise UserError(f"{folder}: {unsafe[0]} is only accepted on the command line: if you trust it, {retype}")
    if record["cwd"] != str(Path.cwd()):
        raise UserError(f"{folder}: the sweep was started in {record['cwd']}: change to that directory, or {retype}")
    others = [argument for argument in arguments if argument not in (*found, "-m", "--multirun")]
    return ["-m", *record["arguments"], *others, f"hydra.sweep.dir={quote(str(folder))}"]


def resume_sweep_command(arguments: Sequence[str], folder: Path) -> str:
    """Return the command that resumes a sweep."""
    start, path = f"{this_start()} -m", shorten(folder)
    if all(map(_is_safe, arguments)):
        return f"{start} {quote_for_shell(RESUME + path)}"
    return f"{start} {join_command(arguments)} {quote_for_shell(f'hydra.sweep.dir={path}')}"


def _is_safe(argument: str) -> bool:
    """Whether an argument from a file is safe: it names no code and no path to load from or write to."""
    key, _, value = argument.lstrip("+~").partition("=")
    if argument.startswith("-") or "_target_" in argument or argument.lstrip("+").startswith(COMMAND_LINE_ONLY):
        return False
    if key.startswith("hydra"):
        return argument.startswith(SAFE_SWEEP_KEYS)
    return not (key.startswith(GROUPS_WITH_PATHS) and is_path_like(value))
