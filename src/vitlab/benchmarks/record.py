"""The record of a benchmark: figures and failures, written after each variant."""

import math
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from io import StringIO
from pathlib import Path
from statistics import median
from textwrap import shorten
from threading import Lock
from typing import Any

from rich.console import Console
from rich.table import Table

from vitlab.errors import UserError
from vitlab.files import write_json, write_text
from vitlab.runs.console import terminal


class Skipped(Exception):
    """A variant cannot run on this machine, or in the time that is left; the message says why."""


class Record:
    """What was measured so far: a command that is killed keeps it.

    `file` holds everything as JSON. Next to it, `.txt` holds the tables, and `.log` tracebacks and the output of
    processes.
    """

    def __init__(self, file: Path, facts: Mapping[str, Any]) -> None:
        self.file, self.tables, self.log = file, file.with_suffix(".txt"), file.with_suffix(".log")
        if file in (self.tables, self.log) or self.tables.exists() or self.log.exists():
            raise UserError(f"out={file}: the .txt and .log next to it are written too; choose another name")
        self.facts = dict(facts)
        self.figures: dict[str, dict[str, list[float]]] = {}  # by title and variant, one for each round
        self.statuses: dict[str, dict[str, str]] = {}  # of checks, and of variants that failed or were skipped
        self.lock = Lock()
        file.parent.mkdir(parents=True, exist_ok=True)

    def measure(
        self, title: str, variants: Mapping[str, Callable[[int], float]], rounds: int, steps: int, end: float = math.inf
    ) -> None:
        """Run each variant once in each round, so that all see the same changes of machine speed."""
        for _ in range(rounds):
            for variant, run in variants.items():
                if variant not in self.statuses.get(title, {}):
                    self.run(title, variant, partial(run, steps), end)

    def run(self, title: str, variant: str, function: Callable[[], float | str | None], end: float = math.inf) -> None:
        """Run a variant, which returns its figure, or a check, which returns a remark or None; write what came out.

        An `end` (of `time.monotonic`) stops it, in the main thread only.
        """
        started, outcome = time.perf_counter(), None
        try:
            with _time_limit(end):
                outcome = function()
            remark = f": {outcome}" if outcome else ""
            status = f"passed in {time.perf_counter() - started:.1f} s{remark}"
        except Skipped as error:
            status = f"skipped: {error}"
        except Exception as error:
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            status = f"failed: {kind}{shorten(str(error), 300)}"
            with self.log.open("a", encoding="utf-8") as log:
                log.write(f"{title}: {variant}\n{traceback.format_exc()}\n")
        with self.lock:
            if isinstance(outcome, float):
                self.figures.setdefault(title, {}).setdefault(variant, []).append(outcome)
                status = _format(outcome)
            else:
                self.statuses.setdefault(title, {})[variant] = status
            write_json(self.file, {**self.facts, "figures": self.figures, "statuses": self.statuses})
            page = StringIO()
            self.print_tables(terminal(file=page, width=200))
            write_text(self.tables, page.getvalue())
            terminal().print(f"{title}: {variant}: {status}")

    def failures(self) -> int:
        """The number of variants that failed."""
        return sum(text.startswith("failed") for section in self.statuses.values() for text in section.values())

    def print_tables(self, console: Console) -> None:
        """Print a table for each title, whose first variant is the reference of the ratios, and all statuses."""
        for title, section in self.figures.items():
            table = Table("variant", title=title, title_justify="left")
            for column in ("median", "lowest", "highest", "ratio"):
                table.add_column(column, justify="right")
            reference = next(iter(section.values()))
            for variant, values in section.items():
                cells = [_format(value) for value in (median(values), min(values), max(values))]
                table.add_row(variant, *cells, f"{median(values) / median(reference):.2f}")
            console.print(table)
        for title, statuses in self.statuses.items():
            for variant, status in statuses.items():
                console.print(f"{title}: {variant}: {status}")


def _format(figure: float) -> str:
    return f"{figure:,.3g}" if figure < 100 else f"{figure:,.0f}"


@contextmanager
def _time_limit(end: float) -> Iterator[None]:
    """Raise Skipped at `end`, also while the block waits for a process."""
    if end == math.inf:
        yield
        return

    def expire(*_: Any) -> None:
        raise Skipped("not finished when the time of this part was over")

    seconds = end - time.monotonic()
    if seconds <= 0:
        raise Skipped("the time of this part is over")
    signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
