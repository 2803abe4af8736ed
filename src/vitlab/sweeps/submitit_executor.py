"""Run a sweep's jobs on a SLURM cluster through submitit."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import submitit

from vitlab.distributed.process import die_with_parent
from vitlab.sweeps.executors import Executor, start_process
from vitlab.sweeps.job import Job


class SubmittedCommand:
    """Runs `train.py` in a child process on the cluster's machine.

    When the job's time is up or it is preempted, submitit calls `checkpoint`: the run saves, and SLURM requeues the
    job, which then resumes.
    """

    def __init__(self, job: Job, new: Sequence[str], resumed: Sequence[str]) -> None:
        self.job, self.new, self.resumed = job, list(new), list(resumed)

    def __call__(self) -> int:
        command = self.resumed if self.job.stage() == "started" else self.new
        self.process = start_process(self.job, command, preexec_fn=_prepare_child)
        signal.signal(signal.SIGTERM, self._forward)
        return self._wait()

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        self._forward()
        self._wait()
        return submitit.helpers.DelayedSubmission(SubmittedCommand(self.job, self.new, self.resumed))

    def _forward(self, number: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        os.kill(self.process.pid, signal.SIGTERM)

    def _wait(self) -> int:
        """Wait for the process. Unlike Popen.wait, this also works in a signal handler that interrupted a wait."""
        _, status = os.waitpid(self.process.pid, 0)
        return os.waitstatus_to_exitcode(status)


def _prepare_child() -> None:
    die_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM warns all processes; submitit passes it on as SIGTERM


class SubmittedJob:
    """A job that waits in the cluster's queue or runs."""

    def __init__(self, submitted: Any) -> None:
        self.submitted = submitted

    def exit_status(self) -> int | None:
        if not self.submitted.done():
            return None
        try:
            return max((int(status) for status in self.submitted.results()), key=abs)
        except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError):
            return 1  # it was cancelled, or its machine failed

    def stop(self) -> None:
        self.submitted.cancel(check=False)

    kill = stop


class SubmititExecutor(Executor):
    """Submits jobs through submitit.

    Args:
        folder: For submitit's own files.
        cluster: "slurm", or "local" to imitate it with processes on this machine.
        jobs: Number that may be queued or running at a time; "auto": all.
        tasks_per_node: Processes per machine; None: one per device, as Lightning expects.
        parameters: Of submitit's executor, such as `timeout_min` and `slurm_partition`.
    """

    def __init__(
        self, folder: Path, cluster: str, jobs: int | str, tasks_per_node: int | None, parameters: dict[str, Any]
    ) -> None:
        super().__init__(None if jobs == "auto" else int(jobs))
        self.executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        self.tasks_per_node = tasks_per_node
        self.parameters = {key: value for key, value in parameters.items() if value is not None}
        if self.parameters.get("nodes") == "auto":
            self.parameters["nodes"] = 1

    def start(self, job: Job, command: Sequence[str]) -> SubmittedJob:
        tasks = self.tasks_per_node or max(1, job.devices)
        self.executor.update_parameters(tasks_per_node=tasks, **{"gpus_per_node": tasks, **self.parameters})
        work = SubmittedCommand(job, command, job.resume_command(command[:2]))
        self.running.append(SubmittedJob(self.executor.submit(work)))
        return self.running[-1]
