"""`sweep.json`: a sweep's jobs, arguments, and how to resume it."""

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitlab.errors import UserError
from vitlab.files import locked, shorten, write_json
from vitlab.runs.directory import check_links
from vitlab.sweeps.job import COMMAND_LINE_ONLY, Job, quote

SWEEP_FILE, STUDY_FILE = "sweep.json", "study.db"
JOB_KEYS = ("number", "overrides", "status", "reason")  # and "folder"
RESUME = "sweep=resume:"
# Hydra's own keys that may come from sweep.json: they only say how the jobs are made.
HYDRA_KEYS_OF_SWEEPS = (
    *("hydra/sweeper=", "hydra/sweeper/", "hydra/launcher=", "hydra.sweeper."),
    *("hydra.launcher.jobs=", "hydra.sweep.subdir="),
)
GROUPS_WITH_PATHS = ("logger.", "callbacks.", "trainer.")  # these write files to configured paths


def read_record(folder: Path) -> dict[str, Any]:
    """Read `sweep.json`: `arguments` of the command, its working directory `cwd`, and `jobs`.

    Raises:
        UserError: There is no such file, or it is damaged.
    """
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


def write_record(folder: Path, arguments: Sequence[str], jobs: Iterable[Job]) -> None:
    """Write `sweep.json`, with the jobs in the order of their numbers."""
    rows = [
        {key: getattr(job, key) for key in JOB_KEYS} | {"folder": str(job.folder.relative_to(folder))}
        for job in sorted(jobs, key=lambda job: job.number)
    ]
    write_json(folder / SWEEP_FILE, {"arguments": list(arguments), "cwd": str(Path.cwd()), "jobs": rows})


@contextmanager
def sweep_lock(folder: Path) -> Iterator[None]:
    """Keep other processes from running the sweep at the same time.

    Raises:
        UserError: Another process already runs it, or a link in the folder leads out of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_links(folder)
    with locked(folder, f"another process is running the sweep in {folder}"):
        yield


def restore_arguments(arguments: Sequence[str]) -> list[str]:
    """Replace `sweep=resume:<dir>` with the recorded arguments of the sweep in that directory.

    Raises:
        UserError: There is no sweep, it was started in another directory, or an argument is not safe.
    """
    found = [argument for argument in arguments if argument.startswith(RESUME)]
    if not found:
        return list(arguments)
    folder = Path(found[0].removeprefix(RESUME))
    record = read_record(folder)
    retype = f"give the sweep's full command again, with hydra.sweep.dir={folder}"
    unsafe = [argument for argument in record["arguments"] if not is_safe(argument)]
    if unsafe:
        raise UserError(f"{folder}: {unsafe[0]} is only accepted on the command line: if you trust it, {retype}")
    if record["cwd"] != str(Path.cwd()):
        raise UserError(f"{folder}: the sweep was started in {record['cwd']}: change to that directory, or {retype}")
    others = [argument for argument in arguments if argument not in (*found, "-m", "--multirun")]
    return ["-m", *record["arguments"], *others, f"hydra.sweep.dir={quote(str(folder))}"]


def is_safe(argument: str) -> bool:
    """Whether an argument from a file is safe: it names no code and no path to load from or write to."""
    key, _, value = argument.lstrip("+~").partition("=")
    if argument.startswith("-") or "_target_" in argument or argument.lstrip("+").startswith(COMMAND_LINE_ONLY):
        return False
    if key.startswith("hydra"):
        return argument.startswith(HYDRA_KEYS_OF_SWEEPS)
    return not (key.startswith(GROUPS_WITH_PATHS) and ("/" in value or ".." in value))


def resume_sweep_command(arguments: Sequence[str], folder: Path) -> str:
    """Return the command that resumes a sweep."""
    path = shorten(folder)
    if all(map(is_safe, arguments)):
        return f"python train.py -m {shlex.quote(RESUME + path)}"
    return f"python train.py -m {shlex.join(arguments)} {shlex.quote(f'hydra.sweep.dir={path}')}"
