"""Print on the terminal and write the same lines to run.log."""

import io
import logging.config
from datetime import timedelta
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console, RenderableType

from vitlab.distributed.process import this_process
from vitlab.files import CONF

log = logging.getLogger(__name__)


def terminal(**options: Any) -> Console:
    """A console that prints text as it is: no markup, no wrapping of paths and commands, no coloured numbers."""
    return Console(soft_wrap=True, highlight=False, markup=False, emoji=False, **options)


def show(*lines: RenderableType, console: Console | None = None) -> None:
    """Print texts and tables on the terminal, with the `console` of a progress bar above the bar, and write the same as
    plain text to run.log."""
    console = console or terminal()
    console.print(*lines, sep="\n")
    if log.isEnabledFor(logging.INFO):
        plain = terminal(file=(text := io.StringIO()), width=console.width, color_system=None, force_terminal=False)
        plain.print(*lines, sep="\n")
        for line in text.getvalue().splitlines():
            log.info(line.rstrip())


def format_duration(seconds: float) -> str:
    """A duration as hours, minutes and seconds: `0:02:05`."""
    return str(timedelta(seconds=round(seconds)))


def log_to(run: Path) -> None:
    """Start logging to a run's `run.log` in a process without Hydra, with the settings that Hydra would use."""
    settings = OmegaConf.load(CONF / "hydra" / "job_logging" / "run_log.yaml")
    logging.config.dictConfig(log_settings(settings, run))


def log_settings(settings: Any, run: Path) -> dict[str, Any]:
    """The settings of `conf/hydra/job_logging` for a run; only rank 0 writes to the terminal."""
    file = this_process().log_file(run)
    file.parent.mkdir(parents=True, exist_ok=True)
    handlers = settings.get("handlers", {})  # the user's own settings may lack these
    if "file" in handlers:
        handlers.file.filename = str(file)
    if "console" in handlers and not this_process().is_rank_zero:
        handlers.console.level = "CRITICAL"
    return dict(OmegaConf.to_container(settings, resolve=True))  # type: ignore[arg-type]
