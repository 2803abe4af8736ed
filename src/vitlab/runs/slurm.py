"""SLURM: a job that is put back into the queue, and the run that it began.

SLURM gives the job's command again, with the same number of the job and a count of the restarts (`man sbatch`, "OUTPUT
ENVIRONMENT VARIABLES").
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from vitlab.errors import UserError
from vitlab.runs.directory import RunDirectory


def job() -> str | None:
    """The job's number, as `scontrol` takes it, also of one of an array; None outside of SLURM."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else os.environ.get("SLURM_JOB_ID")


def was_requeued() -> bool:
    return job() is not None and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def requeue() -> None:
    """Puts this job back into the queue; where the job was submitted with --no-requeue, `scontrol` says so."""
    number = job()
    if number is not None:
        with suppress(OSError):  # no scontrol in a container
            subprocess.run(["scontrol", "requeue", number], check=False)


def this_command() -> str:
    return shlex.join(["python", *sys.argv])


def begun_run(places: Iterable[Path]) -> RunDirectory | None:
    """The newest run at or below these folders that this command began in this job."""
    found = []
    for file in {file for place in places for file in place.rglob("manifest.json")}:
        with suppress(UserError):  # a manifest that can't be read is not this run's
            manifest = RunDirectory(file.parent).manifest()
            mine = job(), this_command(), str(Path.cwd())
            if (manifest.get("slurm_job"), manifest.get("command"), manifest.get("folder")) == mine:
                found.append((str(manifest.get("started")), file.parent))
    return RunDirectory(max(found)[1]) if found else None
