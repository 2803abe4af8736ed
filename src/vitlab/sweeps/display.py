"""Show a sweep on the terminal: a live table, or one line per event in a log."""

from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from vitlab.files import shorten
from vitlab.sweeps.job import Job, Status

STYLES: dict[Status, str] = {
    "queued": "dim",
    "running": "cyan",
    "done": "green",
    "failed": "bold red",
    "interrupted": "yellow",
    "pruned": "dim",
}
FAILURE_LINES = 8
OTHER_LINES = 5  # of the screen: title, heads, summary ...


class SweepDisplay:
    """Shows queued, running (epoch, metric, time left), finished and failed jobs."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.jobs: Sequence[Job] = ()
        self.console = Console(soft_wrap=True, highlight=False)
        self.live = Live(console=self.console, get_renderable=self._render, refresh_per_second=1, transient=False)

    def __enter__(self) -> "SweepDisplay":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.live.stop()

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def report_change(self, job: Job) -> None:
        """Print a job's new status; for a failed job also its last lines and its log."""
        if job.status == "failed":
            self.console.print(f"[bold red]job {job.number} failed[/]: {escape(job.name)}: {escape(job.reason)}")
            for line in job.last_lines(FAILURE_LINES):
                self.say(f"    {line}")
            self.say(f"  full output: {shorten(job.log)}")
        elif job.status == "interrupted":
            self.say(f"job {job.number} interrupted: {job.reason}")
        elif not self.console.is_terminal:
            epoch, value, _ = progress_of(job)
            reached = f" ({job.monitor} {value}, {epoch} epochs)" if job.status in ("done", "pruned") and value else ""
            self.say(f"job {job.number} {job.status}: {job.name}{reached}")

    def _render(self) -> RenderableType:
        table = Table(title=self.title, title_justify="left", box=None, pad_edge=False)
        metric = self.jobs[0].monitor if self.jobs else ""
        for column in ("job", "status", "settings", "epoch", metric, "left"):
            table.add_column(column, justify="left" if column in ("status", "settings") else "right")
        for job in self._jobs_that_fit():
            epoch, value, left = progress_of(job)
            table.add_row(str(job.number), Text(job.status, STYLES[job.status]), Text(job.name), epoch, value, left)
        counts = Counter(job.status for job in self.jobs)
        summary = ", ".join(f"{count} {status}" for status, count in counts.items())
        return Group(table, Text(f"{len(self.jobs)} jobs: {summary}", "dim"))

    def _jobs_that_fit(self) -> list[Job]:
        """Choose the jobs that fit on the screen: running ones, then the latest to end, then the next to start."""
        order = {"running": 0, "failed": 1, "done": 2, "interrupted": 2, "pruned": 2, "queued": 3}
        chosen = sorted(self.jobs, key=lambda job: (order[job.status], -job.started, job.number))
        return sorted(chosen[: max(1, self.console.height - OTHER_LINES)], key=lambda job: job.number)


def progress_of(job: Job) -> tuple[str, str, str]:
    """Return a job's epoch, the latest value of its metric, and its time left, as texts."""
    if job.status == "queued":
        return "", "", ""
    rows = job.epochs_so_far()
    done = int(rows[-1]["epoch"]) if rows else 0
    epoch = f"{done}/{job.epochs}" if job.epochs else str(done)
    value = next((f"{row[job.monitor]:.4f}" for row in reversed(rows) if job.monitor in row), "")
    if not rows or job.epochs is None or job.status != "running":
        return epoch, value, ""
    minutes, seconds = divmod(round(rows[-1]["seconds"] / done * (job.epochs - done)), 60)
    return epoch, value, f"{minutes}:{seconds:02d}"
