"""Run the jobs of a sweep: start, watch and stop their processes, and show them."""

import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from types import FrameType

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vitlab.distributed.process import requeue
from vitlab.errors import STOPPED, TerminatedError
from vitlab.files import shorten
from vitlab.runs.console import format_duration, terminal
from vitlab.sweeps.executors import Executor, JobProcess
from vitlab.sweeps.sweep import Job, Sweep, plan_jobs, recorded_jobs, resume_sweep_command, sweep_lock, write_record
from vitlab.system import SIGHUP, SIGUSR1, describe_exit, stop_signals

POLL_SECONDS = 0.25  # between two checks of the processes
PRUNING_SECONDS = 2.0  # between two checks of the jobs' epochs

STYLES = {"running": "cyan", "failed": "bold red", "done": "green", "interrupted": "yellow"}  # others are dim
PRIORITY = {"running": 0, "failed": 1, "queued": 3}  # of jobs if the screen is too small for all; 2: ended ones
FAILURE_LINES = 8
OTHER_LINES = 5  # of the screen: title, heads, summary ...


class JobSource:
    """The jobs of a sweep in the order in which they start; jobs that are done are skipped."""

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
    """Run each job that is not finished yet; jobs of an earlier start are recognised by their overrides.

    Raises:
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
    """Run the jobs of a grid or a search, `what` in words; keep `sweep.json` up to date, and compare the runs."""
    finished = sum(job.status == "done" for job in source.jobs)
    resume = f"  {resume_sweep_command(sweep.arguments, sweep.folder)}"
    display = SweepDisplay(f"sweep {shorten(sweep.folder)}", source)
    with display.live if display.console.is_terminal else nullcontext():
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

    def __init__(self, sweep: Sweep, executor: Executor, source: JobSource, display: "SweepDisplay") -> None:
        self.sweep, self.executor, self.source, self.display = sweep, executor, source, display
        self.running: dict[int, tuple[Job, JobProcess]] = {}
        self.pruned: set[int] = set()
        self.waiting: Job | None = None
        self.signal: int | None = None
        self.last_pruning = 0.0
        self.earlier = recorded_jobs(sweep.folder)
        self._record()

    def run(self) -> None:
        """Return when no job is left; on a signal, raise after the running jobs have saved."""
        handlers = {number: signal.signal(number, self._on_signal) for number in stop_signals()}
        announced = False
        try:
            self._start_jobs()
            while self.running or (self.waiting and self.signal is None):
                time.sleep(POLL_SECONDS)
                if self.signal is not None and not announced:
                    announced = True
                    self.display.say("stopping: the jobs are saving; press Ctrl-C again to kill them")
                self._collect_ended()
                self._prune()
                self._start_jobs()
        finally:
            self.executor.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self.signal == SIGUSR1 is not None:
            requeue()
        if self.signal is not None:
            raise KeyboardInterrupt if self.signal == signal.SIGINT else TerminatedError(self.signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        first = self.signal is None
        if number == self.signal == SIGHUP:  # a closed terminal sends it several times
            return
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
            if not self.executor.has_room(job):
                self.waiting = job
                return
            self._record()  # before the job writes anything
            process = self.executor.start(job, self.sweep.command(job))
            self.waiting = None
            job.status, job.reason, job.started = "running", "", time.time()
            self.running[job.number] = job, process
            self.display.report_change(job)
            self._record()
            if self.signal is not None:  # it arrived during the start
                process.stop()

    def _collect_ended(self) -> None:
        for job, process in list(self.running.values()):
            exit_status = process.exit_status()
            if exit_status is not None:
                del self.running[job.number]
                self._set_final_status(job, exit_status)
                self.source.record_end(job)
                self.display.report_change(job)
                self._record()

    def _record(self) -> None:
        write_record(self.sweep, [*self.earlier, *self.source.jobs])

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
        elif exit_status in STOPPED:
            job.status, job.reason = "interrupted", "stopped by a signal that did not come from the sweep"
        else:
            job.status, job.reason = "failed", _describe_failure(job, exit_status)


def _describe_failure(job: Job, exit_status: int) -> str:
    """Say in one line why a process failed."""
    if not 0 <= exit_status < 256:
        return describe_exit(exit_status)
    if exit_status == 0:
        return "exited with status 0 before the run finished"
    lines = job.last_lines(40)
    errors = [line for line in lines if line.startswith("error: ")]
    if exit_status == 2 and errors:
        return errors[0].removeprefix("error: ")
    return f"{lines[-1]} (status {exit_status})" if lines else f"status {exit_status}"


class SweepDisplay:
    """Shows a sweep on the terminal as a live table, or in a log as one line per event."""

    def __init__(self, title: str, source: JobSource) -> None:
        self.title, self.source = title, source
        self.console = terminal()
        self.live = Live(console=self.console, get_renderable=self._render, refresh_per_second=1)

    def say(self, *texts: str | tuple[str, str]) -> None:
        self.console.print(Text.assemble(*texts))

    def report_change(self, job: Job) -> None:
        """Print a job's new status; for a failed job also its last lines and its log."""
        if job.status == "failed":
            self.say((f"job {job.number} failed", "bold red"), f": {job.name}: {job.reason}")
            self.say(*(f"    {line}\n" for line in job.last_lines(FAILURE_LINES)), f"  full output: {shorten(job.log)}")
        elif job.status == "interrupted":
            self.say(f"job {job.number} interrupted: {job.reason}")
        elif not self.console.is_terminal:
            epoch, value, _ = _progress_of(job)
            reached = f" ({job.monitor} {value}, {epoch} epochs)" if job.status in ("done", "pruned") and value else ""
            self.say(f"job {job.number} {job.status}: {job.name}{reached}")

    def _render(self) -> RenderableType:
        jobs = self.source.jobs
        table = Table(title=self.title, title_justify="left", box=None, pad_edge=False)
        for column in ("job", "status", "settings", "epoch", jobs[0].monitor if jobs else "", "left"):
            table.add_column(column, justify="left" if column in ("status", "settings") else "right")
        by_priority = sorted(jobs, key=lambda job: (PRIORITY.get(job.status, 2), -job.started, job.number))
        fitting = by_priority[: max(1, self.console.height - OTHER_LINES)]
        for job in sorted(fitting, key=lambda job: job.number):
            status = Text(job.status, STYLES.get(job.status, "dim"))
            table.add_row(str(job.number), status, Text(job.name), *_progress_of(job))
        counts = Counter(job.status for job in jobs)
        summary = ", ".join(f"{count} {status}" for status, count in counts.items())
        return Group(table, Text(f"{len(jobs)} jobs: {summary}", "dim"))


def _progress_of(job: Job) -> tuple[str, str, str]:
    """Return a job's epoch, the latest value of its metric, and its time left, as texts."""
    if job.status == "queued":
        return "", "", ""
    rows = job.epochs_so_far()
    done = int(rows[-1]["epoch"]) if rows else 0
    epoch = f"{done}/{job.epochs}" if job.epochs else str(done)
    value = next((f"{row[job.monitor]:.4f}" for row in reversed(rows) if job.monitor in row), "")
    if not rows or job.epochs is None or job.status != "running":
        return epoch, value, ""
    return epoch, value, format_duration(rows[-1]["seconds"] / done * (job.epochs - done))
