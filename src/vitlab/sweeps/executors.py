"""Run the processes of a sweep's jobs on this machine."""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from vitlab.distributed.process import ANSWER, die_with_parent
from vitlab.sweeps.job import Job

# Beginnings of variables that a launcher around the sweep (torchrun, srun, Lightning) sets. A job is its own run.
LAUNCHER_VARIABLES = (
    *("LOCAL_RANK", "RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_", "PL_", "TORCHELASTIC_", "SLURM_", ANSWER),
)


class JobProcess(Protocol):
    """The process of a started job."""

    def exit_status(self) -> int | None:
        """Return its exit status, negative for a signal; None while it runs."""

    def stop(self) -> None:
        """Ask it to save and exit."""

    def kill(self) -> None:
        """End it at once."""


class Executor:
    """Starts the processes of jobs; the base of LocalExecutor and SubmititExecutor.

    Args:
        limit: Number of jobs at a time; None: any.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.running: list[Any] = []

    def has_room(self, job: Job | None) -> bool:
        """Whether the job can start now; None: any job."""
        self.running = [process for process in self.running if process.exit_status() is None]
        return self.limit is None or len(self.running) < self.limit

    def start(self, job: Job, command: Sequence[str]) -> JobProcess:
        """Start a job's command, whose output goes to the job's log."""
        raise NotImplementedError


def start_process(job: Job, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a command without input whose output goes to the job's log; `options` are Popen's."""
    with job.log.open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, **options)


class LocalJobProcess:
    """A process on this machine and its child processes, in one group."""

    def __init__(self, job: Job, command: Sequence[str], gpus: Sequence[str], environment: dict[str, str]) -> None:
        self.gpus = gpus
        self.process = start_process(
            job,
            command,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal reaches only the sweep, which passes it on
            preexec_fn=partial(die_with_parent, signal.SIGTERM),  # the run then saves, so that it can be resumed
        )

    def exit_status(self) -> int | None:
        status = self.process.poll()
        if status is not None:
            self.kill()  # its remaining children: loader workers, other ranks
        return status

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


class LocalExecutor(Executor):
    """Runs each job in a process on this machine.

    Args:
        jobs: Number at a time; "auto": as many as there are GPUs for, one without GPUs.
        gpus: Their numbers.
        cores: CPU cores of the machine. Without GPUs, the jobs that run at a time share them.
    """

    def __init__(self, jobs: int | str, gpus: Sequence[str], cores: int) -> None:
        self.gpus, self.shares_gpus = list(gpus), jobs != "auto"
        self.jobs_at_a_time = (len(gpus) or 1) if jobs == "auto" else int(jobs)
        self.threads = cores // self.jobs_at_a_time
        super().__init__(self.jobs_at_a_time)

    def has_room(self, job: Job | None) -> bool:
        return super().has_room(job) and (job is None or self._free_gpus(job) is not None)

    def start(self, job: Job, command: Sequence[str]) -> LocalJobProcess:
        gpus = self._free_gpus(job)
        assert gpus is not None
        process = LocalJobProcess(job, command, gpus, self._environment(job, gpus))
        self.running.append(process)
        return process

    def _free_gpus(self, job: Job) -> list[str] | None:
        """Return the GPUs with the fewest jobs; jobs share a GPU only if `jobs` asks for more than fit otherwise."""
        if not self.gpus:
            return []
        needed = min(job.devices or len(self.gpus), len(self.gpus))
        load = {gpu: sum(gpu in process.gpus for process in self.running) for gpu in self.gpus}
        allowed = -(-self.jobs_at_a_time * needed // len(self.gpus)) if self.shares_gpus else 1
        free = sorted((gpu for gpu in self.gpus if load[gpu] < allowed), key=lambda gpu: load[gpu])
        return free[:needed] if len(free) >= needed else None

    def _environment(self, job: Job, gpus: Sequence[str]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_VARIABLES)}
        if gpus:
            return {**kept, "CUDA_VISIBLE_DEVICES": ",".join(gpus)}
        threads = max(1, self.threads // max(1, job.devices))
        return kept if self.jobs_at_a_time == 1 else {"OMP_NUM_THREADS": str(threads), **kept}


def visible_gpus() -> list[str]:
    """Return the numbers or names of the GPUs that a run would see."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu for gpu in named.split(",") if gpu and not gpu.startswith("-")]
    import torch  # takes seconds

    return [str(number) for number in range(torch.cuda.device_count())]


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
