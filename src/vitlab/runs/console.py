"""Print on the terminal and write the same lines to run.log."""

import io
import logging
from typing import Any

from rich.console import Console, RenderableType

log = logging.getLogger(__name__)


def terminal(**options: Any) -> Console:
    """A console that prints text as it is: no markup, no wrapping of paths and commands, no coloured numbers."""
    return Console(soft_wrap=True, highlight=False, markup=False, emoji=False, **options)


def show(*lines: RenderableType, style: str = "", console: Console | None = None) -> None:
    """Print texts and tables on the terminal, and write the same as plain text to run.log.

    Args:
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
