"""Where the processes of a sweep's jobs run."""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

from vitlab.distributed.broadcast import ANSWER
from vitlab.distributed.process import die_with_parent
from vitlab.sweeps.job import Job

# What a launcher around the sweep (torchrun, SLURM's srun, Lightning) left: a job is a run of its own.
OF_ANOTHER_RUN = ("LOCAL_RANK", "RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
PREFIXES_OF_ANOTHER_RUN = ("MASTER_", "PL_", "TORCHELASTIC_", "SLURM_", ANSWER)


class Handle(Protocol):
    """A job that was started."""

    def ended(self) -> int | None:
        """Its exit status, negative for a signal's number; None while it runs."""

    def stop(self) -> None:
        """Asks it to save what it has and to end."""

    def kill(self) -> None:
        """Ends it at once."""


class Executor(Protocol):
    def has_room(self, job: Job | None) -> bool:
        """Whether the job can start now; None: any job."""

    def start(self, job: Job, command: Sequence[str]) -> Handle:
        """Starts a job's command, whose output goes to the job's log."""


class LocalJobProcess:
    """A process on this machine, with those that it starts itself in one group."""

    def __init__(self, job: Job, command: Sequence[str], environment: dict[str, str]) -> None:
        with job.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal reaches the sweep alone, which hands it on
                preexec_fn=partial(die_with_parent, signal.SIGTERM),  # a run saves and ends, as resuming needs
            )

    def ended(self) -> int | None:
        status = self.process.poll()
        if status is not None:
            self.kill()  # what a killed one left behind: loaders' workers, other ranks
        return status

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


class LocalExecutor:
    """One process a job on this machine: as many at a time as it has GPUs for, or as `jobs` says.

    Args:
        jobs: How many at a time; "auto": as the GPUs suffice, one without GPUs.
        gpus: Their numbers.
        cores: Of the machine, divided among the jobs at a time where there are no GPUs.
    """

    def __init__(self, jobs: int | str, gpus: Sequence[str], cores: int) -> None:
        self.gpus, self.cores = list(gpus), cores
        self.limit = (len(self.gpus) or 1) if jobs == "auto" else int(jobs)
        self.shares_gpus = jobs != "auto"
        self.running: list[tuple[LocalJobProcess, list[str]]] = []

    def has_room(self, job: Job | None) -> bool:
        self.running = [(process, gpus) for process, gpus in self.running if process.ended() is None]
        return len(self.running) < self.limit and (job is None or self._free_gpus(job) is not None)

    def start(self, job: Job, command: Sequence[str]) -> LocalJobProcess:
        gpus = self._free_gpus(job)
        assert gpus is not None
        process = LocalJobProcess(job, command, self._environment(job, gpus))
        self.running.append((process, gpus))
        return process

    def _free_gpus(self, job: Job) -> list[str] | None:
        """Those with the fewest jobs; several jobs on one only where `jobs` says more than the GPUs suffice for."""
        if not self.gpus:
            return []
        needed = min(job.devices or len(self.gpus), len(self.gpus))
        load = {gpu: sum(gpu in gpus for _, gpus in self.running) for gpu in self.gpus}
        allowed = -(-self.limit * needed // len(self.gpus)) if self.shares_gpus else 1
        free = sorted((gpu for gpu in self.gpus if load[gpu] < allowed), key=lambda gpu: load[gpu])
        return free[:needed] if len(free) >= needed else None

    def _environment(self, job: Job, gpus: Sequence[str]) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in OF_ANOTHER_RUN and not name.startswith(PREFIXES_OF_ANOTHER_RUN)
        }
        if gpus:
            return {**kept, "CUDA_VISIBLE_DEVICES": ",".join(gpus)}
        threads = max(1, self.cores // self.limit // max(1, job.devices))
        return kept if self.limit == 1 else {"OMP_NUM_THREADS": str(threads), **kept}


def visible_gpus() -> list[str]:
    """Numbers or names of the GPUs that a run would see."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu for gpu in named.split(",") if gpu and not gpu.startswith("-")]
    import torch  # seconds

    return [str(number) for number in range(torch.cuda.device_count())]
