"""Recognise requeued SLURM jobs and torchrun restarts; requeue a SLURM job.

Both run the same command again and count the restarts (`man sbatch`, "OUTPUT ENVIRONMENT VARIABLES";
`torch.distributed.run`, "Environment Variables").
"""

import os
import shlex
import socket
import subprocess
import sys
from contextlib import suppress


def job() -> str | None:
    """Identify the job whose restarts run the same command: the SLURM job id, else the torchrun process, else None."""
    if "TORCHELASTIC_RUN_ID" in os.environ and _slurm_job() is None:
        # The run id alone is "none" or "1" in most commands.
        return f"torchrun {os.environ['TORCHELASTIC_RUN_ID']}, process {os.getppid()} of {socket.gethostname()}"
    return _slurm_job()


def is_requeued() -> bool:
    """Whether SLURM or torchrun has run the command of this process before."""
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), os.environ.get("SLURM_RESTART_COUNT", "0")
    return job() is not None and restarts != ("0", "0")


def requeue() -> None:
    """Put this job back into the queue; `scontrol` prints a message if it was submitted with --no-requeue."""
    number = _slurm_job()
    if number is not None:
        with suppress(OSError):  # a container has no scontrol
            subprocess.run(["scontrol", "requeue", number], check=False)


def this_command() -> str:
    return shlex.join(["python", *sys.argv])


def _slurm_job() -> str | None:
    """The job id as `scontrol` takes it, also for a job of an array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else os.environ.get("SLURM_JOB_ID")
