"""A sweep's jobs on a cluster, by submitit: the same commands, in SLURM jobs."""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import submitit

from vitlab.distributed.process import die_with_parent
from vitlab.sweeps.job import Job


class SubmittedCommand:
    """What runs on the cluster's machine: `train.py`, in a process of its own.

    When the job's time is up, or another one needs the machine, submitit calls `checkpoint`: the run saves, and SLURM
    puts the job back in the queue, where it goes on.

    Args:
        job: Of the sweep.
        new: Command of a new run.
        resumed: Command of one that goes on.
        folder: Where it is run.
    """

    def __init__(self, job: Job, new: Sequence[str], resumed: Sequence[str], folder: Path) -> None:
        self.job, self.new, self.resumed, self.folder = job, list(new), list(resumed), folder

    def __call__(self) -> int:
        command = self.resumed if self.job.stage() == "begun" else self.new
        with self.job.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_settle,
            )
        signal.signal(signal.SIGTERM, self._hand_on)
        return self._wait()

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        self._hand_on()
        self._wait()
        again = SubmittedCommand(self.job, self.new, self.resumed, self.folder)
        return submitit.helpers.DelayedSubmission(again)

    def _hand_on(self, number: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        os.kill(self.process.pid, signal.SIGTERM)

    def _wait(self) -> int:
        """As Popen.wait, which can't be called by a signal's handler while it is waiting."""
        _, status = os.waitpid(self.process.pid, 0)
        return os.waitstatus_to_exitcode(status)


def _settle() -> None:
    die_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM's warning goes to all; submitit hands it on in its own way


class SubmittedJob:
    """A job in the cluster's queue, or that runs there."""

    def __init__(self, submitted: Any) -> None:
        self.submitted = submitted

    def ended(self) -> int | None:
        if not self.submitted.done():
            return None
        try:
            return max((int(status) for status in self.submitted.results()), key=abs)
        except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError):
            return 1  # cancelled, or its machine is gone

    def stop(self) -> None:
        self.submitted.cancel(check=False)

    kill = stop


class SubmititExecutor:
    """Submits jobs by submitit.

    Args:
        folder: For submitit's own files.
        cluster: "slurm", or "local": imitates it with processes on this machine.
        jobs: How many may be in the queue or run at a time; "auto": all.
        tasks_per_node: Processes a machine; None: as many as the job has devices, as Lightning expects it.
        parameters: Of submitit's executor, as `timeout_min` and `slurm_partition`.
    """

    def __init__(
        self, folder: Path, cluster: str, jobs: int | str, tasks_per_node: int | None, parameters: dict[str, Any]
    ) -> None:
        self.executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        self.limit = None if jobs == "auto" else int(jobs)
        self.tasks_per_node, self.parameters = tasks_per_node, parameters
        if parameters.get("nodes") == "auto":
            parameters["nodes"] = 1
        self.submitted: list[SubmittedJob] = []

    def has_room(self, job: Job | None) -> bool:
        self.submitted = [submitted for submitted in self.submitted if submitted.ended() is None]
        return self.limit is None or len(self.submitted) < self.limit

    def start(self, job: Job, command: Sequence[str]) -> SubmittedJob:
        tasks = self.tasks_per_node or max(1, job.devices)
        parameters = {"gpus_per_node": tasks, **{k: v for k, v in self.parameters.items() if v is not None}}
        self.executor.update_parameters(tasks_per_node=tasks, **parameters)
        work = SubmittedCommand(job, command, job.resuming(command[:2]), Path.cwd())
        handle = SubmittedJob(self.executor.submit(work))
        self.submitted.append(handle)
        return handle
