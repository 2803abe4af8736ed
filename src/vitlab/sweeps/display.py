"""A sweep on the terminal: a table that is alive, or a line for each thing that happens where nobody looks."""

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
LINES_OF_A_FAILURE = 8
OTHER_LINES = 5  # of the screen: title, heads, summary ...


class SweepDisplay:
    """Shows queued, running (epoch, metric, time left), done and failed jobs."""

    def __init__(self, title: str, total: int | None = None) -> None:
        self.title, self.total = title, total
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

    def changed(self, job: Job) -> None:
        """Says what became of a job; of a failed one, its last lines and where the others are."""
        if job.status == "failed":
            self.console.print(f"[bold red]job {job.number} failed[/]: {escape(job.name)}: {escape(job.reason)}")
            for line in job.last_lines(LINES_OF_A_FAILURE):
                self.say(f"    {line}")
            self.say(f"  all it printed: {shorten(job.log)}")
        elif job.status == "interrupted":
            self.say(f"job {job.number} interrupted: {job.reason}")
        elif not self.console.is_terminal:
            epoch, value, _ = position(job)
            reached = f" ({job.monitor} {value}, {epoch} epochs)" if job.status in ("done", "pruned") and value else ""
            self.say(f"job {job.number} {job.status}: {job.name}{reached}")

    def _render(self) -> RenderableType:
        table = Table(title=self.title, title_justify="left", box=None, pad_edge=False)
        metric = self.jobs[0].monitor if self.jobs else ""
        for column in ("job", "", "what", "epoch", metric, "left"):
            table.add_column(column, justify="left" if column in ("", "what") else "right")
        for job in self._most_telling():
            epoch, value, left = position(job)
            table.add_row(str(job.number), Text(job.status, STYLES[job.status]), Text(job.name), epoch, value, left)
        counts = Counter(job.status for job in self.jobs)
        summary = ", ".join(f"{count} {status}" for status, count in counts.items())
        return Group(table, Text(f"{len(self.jobs)} jobs: {summary}", "dim"))

    def _most_telling(self) -> list[Job]:
        """The jobs that fit: those that run first, then the latest to end, then the next ones."""
        order = {"running": 0, "failed": 1, "done": 2, "interrupted": 2, "pruned": 2, "queued": 3}
        chosen = sorted(self.jobs, key=lambda job: (order[job.status], -job.started, job.number))
        chosen = chosen[: max(1, self.console.height - OTHER_LINES)]
        return sorted(chosen, key=lambda job: job.number)


def position(job: Job) -> tuple[str, str, str]:
    """Epoch, the metric's latest value and the time left of a job, as texts."""
    if job.status == "queued":
        return "", "", ""
    rows = job.epoch_rows()
    if not rows:
        return (f"0/{job.epochs}" if job.epochs else "0"), "", ""
    row, done = rows[-1], int(rows[-1]["epoch"])
    value = next((f"{r[job.monitor]:.4f}" for r in reversed(rows) if job.monitor in r), "")
    if job.epochs is None:
        return str(done), value, ""
    minutes, seconds = divmod(round(row["seconds"] / done * (job.epochs - done)), 60)
    left = f"{minutes}:{seconds:02d}" if job.status == "running" else ""
    return f"{done}/{job.epochs}", value, left
