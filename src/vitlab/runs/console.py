"""Print on the terminal and write the same lines to run.log."""

from __future__ import annotations

import codecs
import io
import logging.config
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf, read_write

from vitlab.distributed.process import this_process
from vitlab.files import CONF
from vitlab.system import WINDOWS, wait_until_writable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

log = logging.getLogger(__name__)


class _Unbreakable(io.FileIO):
    """A terminal, pipe or file that drops what it can't take: its reader has ended, or its disk is full."""

    def write(self, data: Any) -> int:
        try:
            while (count := super().write(data)) is None:  # another program made it non-blocking
                wait_until_writable(self)
            return count
        except OSError:
            return len(data)


def protect_streams() -> None:
    """Make stdout and stderr take any text, and survive their reader: a run does not end because nobody watches.

    Characters that the terminal's encoding lacks are escaped. Streams that a test or notebook replaced stay.
    """
    if os.environ.get("COLUMNS") == "0":  # rich would print nothing
        del os.environ["COLUMNS"]
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed by the shell: the next file would get this number, and the messages
            os.open(os.devnull, os.O_RDWR)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream: Any = getattr(sys, name)
        if stream is None or stream is not getattr(sys, f"__{name}__"):  # Windows has none without a console
            continue
        if WINDOWS and stream.isatty():  # Python writes to its console in its own way, which takes any text
            stream.reconfigure(errors="backslashreplace")
        else:
            encoding = codecs.lookup(getattr(stream, "encoding", "utf-8")).name
            errors = "surrogateescape" if encoding == "utf-8" else "backslashreplace"  # file names may hold any bytes
            file: Any = io.BufferedWriter(_Unbreakable(number, "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(file, encoding, errors, line_buffering=True))


def terminal(**options: Any) -> Console:
    """A console that prints text as it is: no markup, no wrapping of paths and commands, no coloured numbers, and text
    also in a notebook."""
    from rich.console import Console  # what the config check refuses does not wait for it

    return Console(soft_wrap=True, highlight=False, markup=False, emoji=False, force_jupyter=False, **options)


def show(*lines: RenderableType, console: Console | None = None) -> None:
    """Print texts and tables on the terminal, with the `console` of a progress bar above the bar, and write the same as
    plain text to run.log."""
    from rich.table import Table

    console = console or terminal()
    unlimited = console.options.update(max_width=10_000)
    for table in (line for line in lines if isinstance(line, Table)):  # in a narrow terminal nothing is cut off
        if console.measure(table, options=unlimited).maximum > console.width:
            table.box = None
        table.width = console.measure(table, options=unlimited).maximum
    console.print(*lines, sep="\n")
    if log.isEnabledFor(logging.INFO):
        plain = terminal(file=(text := io.StringIO()), width=console.width, color_system=None, force_terminal=False)
        plain.print(*lines, sep="\n")
        for line in text.getvalue().splitlines():
            log.info(line.rstrip())


def format_duration(seconds: float) -> str:
    """A duration as hours, minutes and seconds: `0:02:05`."""
    return str(timedelta(seconds=round(seconds)))


def log_to(run: Path, settings: Any = None) -> None:
    """Start logging to a run's `run.log` in a process that Hydra has not set up; `settings` is the config's
    `hydra.job_logging` if there is one."""
    settings = settings or OmegaConf.load(CONF / "hydra" / "job_logging" / "run_log.yaml")
    logging.config.dictConfig(log_settings(settings, run))


def log_settings(settings: Any, run: Path) -> dict[str, Any]:
    """The settings of `conf/hydra/job_logging` for a run; only rank 0 writes to the terminal."""
    file = this_process().log_file(run)
    file.parent.mkdir(parents=True, exist_ok=True)
    handlers = settings.get("handlers", {})  # the user's own settings may lack these
    with read_write(settings):
        if "file" in handlers:
            handlers.file.filename = str(file)
        if "console" in handlers and not this_process().is_rank_zero:
            handlers.console.level = "CRITICAL"
    return dict(OmegaConf.to_container(settings, resolve=True))  # type: ignore[arg-type]
