"""Run the jobs of a sweep: start, watch and stop their processes."""

import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from vitlab.distributed.process import requeue
from vitlab.errors import TerminatedError
from vitlab.files import shorten
from vitlab.sweeps.display import SweepDisplay
from vitlab.sweeps.executors import Executor, JobProcess
from vitlab.sweeps.job import Job
from vitlab.sweeps.sweep import Sweep, plan_jobs
from vitlab.sweeps.sweep_record import recorded_jobs, resume_sweep_command, sweep_lock, write_record

POLL_SECONDS = 0.25  # between two checks of the processes
PRUNING_SECONDS = 2.0  # between two checks of the jobs' epochs
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # SIGUSR1: SLURM's warning


class JobSource:
    """The jobs of a sweep in the order in which they start; jobs that are done are skipped.

    Args:
        jobs: All jobs known so far.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = list(jobs)
        self.left = [job for job in jobs if job.status != "done"]

    def next(self) -> Job | None:
        """Return the next job to start; None if there is none for now."""
        return self.left.pop(0) if self.left else None

    def should_prune(self, job: Job) -> bool:
        """Whether to stop a running job early."""
        return False

    def record_end(self, job: Job) -> None:
        """Take note of a job that ended."""


def run_grid(sweep: Sweep, executor: Executor, all_overrides: Sequence[Sequence[str]]) -> None:
    """Run each job that is not finished yet.

    Jobs of an earlier start in the same directory are recognised by their overrides; new ones get new numbers.

    Raises:
        UserError: Another process runs the sweep, or its directory holds something else.
        KeyboardInterrupt, TerminatedError: It was stopped.
        SystemExit: 1, if a job failed.
    """
    with sweep_lock(sweep.folder):
        jobs = plan_jobs(sweep, all_overrides)
        for job in jobs:
            if job.stage() == "finished":
                job.status = "done"
        run_jobs(sweep, executor, JobSource(jobs), f"{len(jobs)} jobs")


def run_jobs(sweep: Sweep, executor: Executor, source: JobSource, what: str) -> None:
    """Run jobs, keep `sweep.json` up to date, and compare the runs; see `run_grid`.

    Args:
        sweep, executor, source: The sweep, where its jobs run, and the jobs.
        what: The jobs in words, for the first line on the terminal.
    """
    finished = sum(job.status == "done" for job in source.jobs)
    resume = f"  {resume_sweep_command(sweep.arguments, sweep.folder)}"
    with SweepDisplay(f"sweep {shorten(sweep.folder)}") as display:
        runner = Runner(sweep, executor, source, display)
        display.say(f"sweep: {what}" + (f", {finished} of them already finished" if finished else ""))
        display.say(f"sweep directory: {shorten(sweep.folder)}")
        try:
            runner.run()
        except (KeyboardInterrupt, TerminatedError):
            display.say(f"interrupted; to resume:\n{resume}")
            raise
    sweep.compare(sweep.folder)
    failed = [job for job in source.jobs if job.status in ("failed", "interrupted")]
    if failed:
        display.say(f"{len(failed)} of {len(source.jobs)} jobs failed or were interrupted; to repeat them:\n{resume}")
        sys.exit(1)


class Runner:
    """Runs all jobs of a source, as many at a time as the executor has room for."""

    def __init__(self, sweep: Sweep, executor: Executor, source: JobSource, display: SweepDisplay) -> None:
        self.sweep, self.executor, self.source, self.display = sweep, executor, source, display
        self.earlier = recorded_jobs(sweep.folder)
        self.running: dict[int, tuple[Job, JobProcess]] = {}
        self.pruned: set[int] = set()
        self.waiting: Job | None = None
        self.signal: int | None = None
        self.last_pruning = 0.0
        self._save()

    def run(self) -> None:
        """Return when no job is left.

        Raises:
            KeyboardInterrupt: On Ctrl-C, after the running jobs have saved.
            TerminatedError: The same on SIGTERM, SIGHUP, or SLURM's warning (the job is then requeued).
        """
        announced = False
        with self._handle_signals():
            self._start_jobs()
            while self.running:
                time.sleep(POLL_SECONDS)
                if self.signal is not None and not announced:
                    announced = True
                    self.display.say("stopping: the jobs are saving; press Ctrl-C again to kill them")
                self._collect_ended()
                self._prune()
                self._start_jobs()
        if self.signal == signal.SIGUSR1:
            requeue()
        if self.signal is not None:
            raise KeyboardInterrupt if self.signal == signal.SIGINT else TerminatedError

    @contextmanager
    def _handle_signals(self) -> Iterator[None]:
        """Pass signals on to the jobs."""
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
        first = self.signal is None
        self.signal = number if first else self.signal
        for _, process in list(self.running.values()):
            if first:
                process.stop()
            else:
                process.kill()

    def _start_jobs(self) -> None:
        # A search picks its next job as late as possible, when it knows most.
        while self.signal is None and self.executor.has_room(None):
            job = self.waiting or self.source.next()
            if job is None:
                return
            self._save()  # before the job writes anything
            if not self.executor.has_room(job):
                self.waiting = job
                return
            process = self.executor.start(job, self.sweep.command(job))
            self.waiting = None
            job.status, job.reason, job.started = "running", "", time.time()
            self.running[job.number] = job, process
            self._save(changed=job)
            if self.signal is not None:  # it arrived during the start
                process.stop()

    def _collect_ended(self) -> None:
        for job, process in list(self.running.values()):
            exit_status = process.exit_status()
            if exit_status is not None:
                del self.running[job.number]
                self._set_final_status(job, exit_status)
                self.source.record_end(job)
                self._save(changed=job)

    def _prune(self) -> None:
        if time.monotonic() - self.last_pruning > PRUNING_SECONDS:
            self.last_pruning = time.monotonic()
            for job, process in self.running.values():
                if job.number not in self.pruned and self.source.should_prune(job):
                    self.pruned.add(job.number)
                    process.stop()

    def _set_final_status(self, job: Job, exit_status: int) -> None:
        """Judge an ended job by its files: exit status 0 does not prove that the run finished."""
        if job.stage() == "finished":
            job.status = "done"
        elif job.number in self.pruned:
            job.status, job.reason = "pruned", f"after {len(job.epochs_so_far())} epochs"
        elif self.signal is not None:
            job.status, job.reason = "interrupted", "the sweep was stopped"
        elif exit_status in (130, 143):
            job.status, job.reason = "interrupted", "stopped by a signal that did not come from the sweep"
        else:
            job.status, job.reason = "failed", describe_failure(job, exit_status)

    def _save(self, changed: Job | None = None) -> None:
        """Show the jobs, and write them to `sweep.json` with those of earlier starts."""
        self.display.jobs = self.source.jobs
        if changed:
            self.display.report_change(changed)
        numbers = {job.number for job in self.source.jobs}
        earlier = [job for job in self.earlier if job.number not in numbers]
        write_record(self.sweep.folder, self.sweep.arguments, [*earlier, *self.source.jobs])


def describe_failure(job: Job, exit_status: int) -> str:
    """Say in one line why a process failed."""
    if exit_status < 0:
        name = signal.Signals(-exit_status).name
        return f"killed by {name}" + (" (often because memory ran out)" if name == "SIGKILL" else "")
    if exit_status == 0:
        return "exited with status 0 before the run finished"
    lines = job.last_lines(40)
    errors = [line for line in lines if line.startswith("error: ")]
    if exit_status == 2 and errors:
        return errors[0].removeprefix("error: ")
    return f"{lines[-1]} (status {exit_status})" if lines else f"status {exit_status}"
