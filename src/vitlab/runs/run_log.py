"""Print on the terminal, and keep what was printed, warnings and tracebacks in run.log."""

import io
import logging
import logging.config
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from vitlab.distributed.process import this_process

if TYPE_CHECKING:  # rich takes a tenth of a second to import
    from rich.console import Console, RenderableType

log = logging.getLogger(__name__)


def terminal(**options: Any) -> "Console":
    """A console that prints text as it is: no markup, no wrapping of paths and commands, no coloured numbers."""
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False, markup=False, emoji=False, **options)


def show(*lines: "RenderableType", style: str = "", console: "Console | None" = None) -> None:
    """Print on the terminal, and write the same as plain text to run.log.

    Args:
        lines: Texts and tables, printed below each other.
        style: Of the texts on the terminal, as `bold red`.
        console: The progress bar's, if one may be running: the lines then appear above the bar.
    """
    console = console or terminal()
    console.print(*lines, sep="\n", style=style)
    if log.isEnabledFor(logging.INFO):
        plain = terminal(file=(text := io.StringIO()), width=console.width, color_system=None, force_terminal=False)
        plain.print(*lines, sep="\n")
        for line in text.getvalue().splitlines():
            log.info(line.rstrip())


def log_to(run: Path, conf: Path) -> None:
    """Append this process's log to a run's, for runs that Hydra does not start: resumed and reproduced ones."""
    file = this_process().log_file(run)
    file.parent.mkdir(parents=True, exist_ok=True)
    logging.config.dictConfig(log_settings(OmegaConf.load(conf / "hydra" / "job_logging" / "run_log.yaml"), file))


def log_settings(settings: Any, file: Path) -> dict[str, Any]:
    """The settings of `conf/hydra/job_logging` with this file as the log; only rank 0 writes to the terminal."""
    assert isinstance(settings, DictConfig)
    if "file" in settings.get("handlers", {}):  # not if the user chose other settings
        settings.handlers.file.filename = str(file)
    if not this_process().is_rank_zero and "console" in settings.get("handlers", {}):
        settings.handlers.console.level = "CRITICAL"
    plain: Any = OmegaConf.to_container(settings, resolve=True)
    return dict(plain)
