"""A job whose command is given again, and the run that it began.

SLURM puts a job back into the queue and gives its command again, with the same number of the job and a count of the
restarts (`man sbatch`, "OUTPUT ENVIRONMENT VARIABLES"). torchrun starts all processes again when one has failed, up to
`--max-restarts` times, and counts too (`torch.distributed.run`, "Environment Variables").
"""

import os
import shlex
import socket
import subprocess
import sys
from contextlib import suppress


def job() -> str | None:
    """What this process has in common with those that got its command before: SLURM's number of the job, else the
    torchrun that started it; None where nothing gives a command again."""
    if "TORCHELASTIC_RUN_ID" in os.environ and _slurm_job() is None:
        # Its id alone is "none" or "1" in most commands.
        return f"torchrun {os.environ['TORCHELASTIC_RUN_ID']}, process {os.getppid()} of {socket.gethostname()}"
    return _slurm_job()


def is_requeued() -> bool:
    """Whether the job gives the command of this process not for the first time."""
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), os.environ.get("SLURM_RESTART_COUNT", "0")
    return job() is not None and restarts != ("0", "0")


def requeue() -> None:
    """Puts this job back into the queue; where the job was submitted with --no-requeue, `scontrol` says so."""
    number = _slurm_job()
    if number is not None:
        with suppress(OSError):  # no scontrol in a container
            subprocess.run(["scontrol", "requeue", number], check=False)


def this_command() -> str:
    return shlex.join(["python", *sys.argv])


def _slurm_job() -> str | None:
    """The job's number, as `scontrol` takes it, also of one of an array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else os.environ.get("SLURM_JOB_ID")
