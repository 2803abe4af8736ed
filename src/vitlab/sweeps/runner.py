"""Starts a sweep's jobs, watches them, and ends them when it is told to."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from vitlab.distributed.slurm import requeue
from vitlab.errors import TerminatedError
from vitlab.sweeps.display import SweepDisplay
from vitlab.sweeps.executors import Executor, Handle
from vitlab.sweeps.job import Job

LOOK_SECONDS = 0.25  # between two looks at the processes
EPOCHS_SECONDS = 2.0  # between two looks at a job's epochs
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # the last is SLURM's warning


class Plan(Protocol):
    """Which jobs there are to do."""

    @property
    def jobs(self) -> Sequence[Job]:
        """Those that are known so far, ended ones included."""

    def next(self) -> Job | None:
        """The next one to start; None where there is none (as long as none that runs ends)."""

    def is_hopeless(self, job: Job) -> bool:
        """Whether a running job is better ended."""

    def ended(self, job: Job) -> None:
        """Takes note of a job that ended."""


class Runner:
    """Runs a plan's jobs to their ends, as many at a time as the engine has room for.

    Args:
        plan: The jobs.
        engine: Where their processes run.
        command: What a job's process is.
        display: Where the user sees them.
        changed: Called when a job's status has changed.
    """

    def __init__(
        self,
        plan: Plan,
        engine: Executor,
        command: Callable[[Job], Sequence[str]],
        display: SweepDisplay,
        changed: Callable[[], None],
    ) -> None:
        self.plan, self.engine, self.command = plan, engine, command
        self.display, self.changed = display, changed
        self.running: dict[int, tuple[Job, Handle]] = {}
        self.pruned: set[int] = set()
        self.waiting: Job | None = None
        self.signal: int | None = None
        self.looked = 0.0

    def run(self) -> None:
        """Returns when no job is left.

        Raises:
            KeyboardInterrupt: at Ctrl-C, when the running jobs have saved what they had.
            TerminatedError: the same, at SIGTERM, at SLURM's warning (the job is put back into the queue), or when the
                terminal was closed.
        """
        told = False
        with self._heard():
            while True:
                self._start_what_fits()
                if not self.running:
                    break
                time.sleep(LOOK_SECONDS)
                if self.signal is not None and not told:
                    told = True
                    self.display.say("stopping: the jobs save what they have; Ctrl-C again ends them at once")
                self._look()
        if self.signal == signal.SIGUSR1:
            requeue()
        if self.signal is not None:
            raise KeyboardInterrupt if self.signal == signal.SIGINT else TerminatedError

    @contextmanager
    def _heard(self) -> Iterator[None]:
        """Hands signals on to the jobs while it lasts."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        first, self.signal = self.signal is None, number if self.signal is None else self.signal
        for _, handle in list(self.running.values()):
            if first:
                handle.stop()
            else:
                handle.kill()

    def _start_what_fits(self) -> None:
        while self.signal is None and self.engine.has_room(None):  # a search chooses late, by all that is known
            job = self.waiting or self.plan.next()
            if job is None:
                return
            self.changed()  # before anything of the job is on disk
            if not self.engine.has_room(job):
                self.waiting = job
                return
            handle = self.engine.start(job, self.command(job))
            self.waiting = None
            job.status, job.reason, job.started = "running", "", time.time()
            self.running[job.number] = job, handle
            self._note(job)
            if self.signal is not None:  # came while it was started
                handle.stop()

    def _look(self) -> None:
        for job, handle in list(self.running.values()):
            status = handle.ended()
            if status is not None:
                del self.running[job.number]
                self._judge(job, status)
                self.plan.ended(job)
                self._note(job)
        if time.monotonic() - self.looked > EPOCHS_SECONDS:
            self.looked = time.monotonic()
            for job, handle in self.running.values():
                if job.number not in self.pruned and self.plan.is_hopeless(job):
                    self.pruned.add(job.number)
                    handle.stop()

    def _judge(self, job: Job, status: int) -> None:
        """What became of a job whose process ended: by its files, for a status of 0 is no finished run."""
        if job.stage() == "finished":
            job.status = "done"
        elif job.number in self.pruned:
            job.status, job.reason = "pruned", f"after {len(job.epoch_rows())} epochs"
        elif self.signal is not None:
            job.status, job.reason = "interrupted", "the sweep was stopped"
        elif status in (130, 143):
            job.status, job.reason = "interrupted", "something else than the sweep stopped it"
        else:
            job.status, job.reason = "failed", describe_failure(job, status)

    def _note(self, job: Job) -> None:
        self.display.jobs = list(self.plan.jobs)
        self.display.changed(job)
        self.changed()


def describe_failure(job: Job, status: int) -> str:
    """One line that says why a process ended."""
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}" + (", as the system does where memory runs out" if name == "SIGKILL" else "")
    if status == 0:
        return "ended with status 0 before the run was finished"
    lines = job.last_lines(40)
    mistakes = [line for line in lines if line.startswith("error: ")]
    if status == 2 and mistakes:
        return mistakes[0].removeprefix("error: ")
    return f"{lines[-1]} (status {status})" if lines else f"status {status}"
