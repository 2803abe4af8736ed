"""Run the processes of a sweep's jobs, on this machine or through submitit."""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitlab.distributed.process import ANSWER
from vitlab.sweeps.fork_server import ForkServer
from vitlab.sweeps.sweep import Job
from vitlab.system import ask_to_stop, die_with_parent, kill_group, may_have_gpu, start_process

# Beginnings of variables that a launcher around the sweep (torchrun, srun, Lightning) sets. A job is its own run.
LAUNCHER_VARIABLES = (
    *("LOCAL_RANK", "RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_", "PL_", "TORCHELASTIC_", "SLURM_", ANSWER),
)


class Executor:
    """Starts the processes of jobs, at most `limit` at a time; None: any number."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.running: list[Any] = []

    def has_room(self, job: Job | None) -> bool:
        """Whether the job can start now; None: any job."""
        self.running = [process for process in self.running if process.exit_status() is None]
        return self.limit is None or len(self.running) < self.limit

    def start(self, job: Job, command: Sequence[str]) -> "JobProcess":
        """Start a job's command, whose output goes to the job's log."""
        raise NotImplementedError

    def close(self) -> None:
        """End what the executor itself runs."""


class LocalExecutor(Executor):
    """Runs `jobs` at a time on this machine, on their own GPUs or sharing the CPU cores; "auto": one per GPU.

    Jobs with one device are forks of one process that has imported the modules to `preload`; None: they are not.
    """

    def __init__(self, jobs: int | str, gpus: Sequence[str], cores: int, preload: Sequence[str] | None = None) -> None:
        self.jobs_at_a_time = (len(gpus) or 1) if jobs == "auto" else int(jobs)
        super().__init__(self.jobs_at_a_time)
        self.gpus, self.shares_gpus, self.cores = gpus, jobs != "auto", cores
        self.preload = preload
        self.server: ForkServer | None = None

    def has_room(self, job: Job | None) -> bool:
        if not super().has_room(job) or (job and self._free_gpus(job) is None):
            return False
        if job and job.devices == 1 and self.preload is not None:
            self.server = self.server or ForkServer(self.preload, self._environment(job, []))
            return not self.server.is_importing()
        return True

    def start(self, job: Job, command: Sequence[str]) -> "LocalJobProcess":
        gpus = self._free_gpus(job) or []
        process = LocalJobProcess(job, command, gpus, self._environment(job, gpus), self.server)
        self.running.append(process)
        return process

    def close(self) -> None:
        if self.server:
            self.server.close()

    def _environment(self, job: Job, gpus: Sequence[str]) -> dict[str, str]:
        """Return a job's environment variables: this process's, without those that make it part of a larger run."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_VARIABLES)}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        elif self.jobs_at_a_time > 1:
            threads = self.cores // self.jobs_at_a_time // max(1, job.devices)
            environment.setdefault("OMP_NUM_THREADS", str(max(1, threads)))
        return environment

    def _free_gpus(self, job: Job) -> list[str] | None:
        """Return the GPUs with the fewest jobs; jobs share a GPU only if `jobs` asks for more than fit otherwise."""
        if not self.gpus:
            return []
        needed = min(job.devices or len(self.gpus), len(self.gpus))
        load = {gpu: sum(gpu in process.gpus for process in self.running) for gpu in self.gpus}
        allowed = -(-self.jobs_at_a_time * needed // len(self.gpus)) if self.shares_gpus else 1
        free = sorted((gpu for gpu in self.gpus if load[gpu] < allowed), key=lambda gpu: load[gpu])
        return free[:needed] if len(free) >= needed else None


class LocalJobProcess:
    """A process on this machine and its child processes, in one group; `stop` lets it save, `kill` does not."""

    def __init__(
        self,
        job: Job,
        command: Sequence[str],
        gpus: Sequence[str],
        environment: dict[str, str],
        server: ForkServer | None,
    ) -> None:
        self.gpus = gpus
        with job.log.open("ab") as log:  # Ctrl-C reaches only the sweep, which passes it on
            forked = server.start(command, environment, job.log) if server else None
            self.process = forked or start_process(command, log, environment)

    def exit_status(self) -> int | None:
        status = self.process.poll()
        if status is not None:
            self.kill()  # its remaining children: loader workers, other ranks
        return status

    def stop(self) -> None:
        ask_to_stop(self.process)

    def kill(self) -> None:
        kill_group(self.process)


class SubmititExecutor(Executor):
    """Submits jobs through submitit, whose own files go to `folder`; the other arguments are SubmititLauncher's."""

    def __init__(
        self, folder: Path, cluster: str, jobs: int | str, tasks_per_node: int | None, parameters: dict[str, Any]
    ) -> None:
        import submitit

        super().__init__(None if jobs == "auto" else int(jobs))
        self.executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        self.tasks_per_node = tasks_per_node
        self.parameters = {key: value for key, value in parameters.items() if value is not None}
        if self.parameters.get("nodes") == "auto":
            self.parameters["nodes"] = 1

    def start(self, job: Job, command: Sequence[str]) -> "SubmittedJob":
        tasks = self.tasks_per_node or max(1, job.devices)  # one per device, as Lightning expects
        self.executor.update_parameters(tasks_per_node=tasks, **{"gpus_per_node": tasks, **self.parameters})
        work = SubmittedCommand(job, command, job.resume_command(command[:2]))
        process = SubmittedJob(self.executor.submit(work))
        self.running.append(process)
        return process


class SubmittedJob:
    """A job that waits in the cluster's queue or runs."""

    def __init__(self, submitted: Any) -> None:
        self.submitted = submitted

    def exit_status(self) -> int | None:
        from submitit.core.utils import FailedJobError, UncompletedJobError

        if not self.submitted.done():
            return None
        try:
            return max((int(status) for status in self.submitted.results()), key=abs)
        except (UncompletedJobError, FailedJobError):
            return 1  # it was cancelled, or its machine failed

    def stop(self) -> None:
        self.submitted.cancel(check=False)

    kill = stop


JobProcess = LocalJobProcess | SubmittedJob


class SubmittedCommand:
    """Runs `train.py` in a child process on the cluster's machine.

    When the job's time is up or it is preempted, submitit calls `checkpoint`: the run saves, and SLURM requeues the
    job, which then resumes.
    """

    def __init__(self, job: Job, new: Sequence[str], resumed: Sequence[str]) -> None:
        self.job, self.new, self.resumed = job, list(new), list(resumed)

    def __call__(self) -> int:
        command = self.resumed if self.job.stage() == "started" else self.new
        with self.job.log.open("ab") as log:
            streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
            self.process = subprocess.Popen(command, preexec_fn=_prepare_child, **streams)
        signal.signal(signal.SIGTERM, self._forward)
        return self._wait()

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission

        self._forward()
        self._wait()
        return DelayedSubmission(SubmittedCommand(self.job, self.new, self.resumed))

    def _forward(self, *signal_and_frame: Any) -> None:
        os.kill(self.process.pid, signal.SIGTERM)

    def _wait(self) -> int:
        """Wait for the process. Unlike Popen.wait, this also works in a signal handler that interrupted a wait."""
        _, status = os.waitpid(self.process.pid, 0)
        return os.waitstatus_to_exitcode(status)


def _prepare_child() -> None:
    die_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM warns all processes; submitit passes it on as SIGTERM


def visible_gpus() -> list[str]:
    """Return the numbers or names of the GPUs that a run would see."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu for gpu in named.split(",") if gpu and not gpu.startswith("-")]
    if not may_have_gpu():
        return []
    import torch  # takes seconds

    return [str(number) for number in range(torch.cuda.device_count())]
