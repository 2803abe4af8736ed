"""Progress bars in a terminal or in a notebook."""

import io
import time
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TimeRemainingColumn

from vitlab.runs.console import terminal

Item = TypeVar("Item")

REFRESH_SECONDS = 0.25
NOTEBOOK_WIDTH = 100  # characters


def progress_bar(*columns: str | ProgressColumn, console: Console) -> Progress:
    """A bar that disappears at its end: on the terminal of a console, in a notebook below its cell; elsewhere none."""
    if Console().is_jupyter:
        return NotebookProgress(*columns, expand=True)
    options: dict[str, Any] = {"refresh_per_second": 1 / REFRESH_SECONDS, "disable": not console.is_terminal}
    return Progress(*columns, console=console, expand=True, transient=True, **options)


def track(items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """Yield the items, and show a bar meanwhile."""
    with progress_bar("{task.description}", BarColumn(None), TimeRemainingColumn(), console=terminal()) as bar:
        yield from bar.track(items, total, description=description)


class NotebookProgress(Progress):
    """A bar below a cell. Rich's own swallows what the cell prints while it refreshes, and needs ipywidgets."""

    def __init__(self, *columns: str | ProgressColumn, **options: Any) -> None:
        self.page = Console(file=io.StringIO(), record=True, width=NOTEBOOK_WIDTH, force_jupyter=False)
        super().__init__(*columns, console=self.page, auto_refresh=False, **options)
        self.ipython: Any = import_module("IPython.display")  # which every notebook has
        self.handle: Any = None  # of what is displayed, once the bar has started
        self.shown = 0.0  # time of the last refresh

    def start(self) -> None:
        self.handle = self.ipython.display(self.ipython.HTML(""), display_id=True)

    def stop(self) -> None:
        self.handle.update(self.ipython.HTML(""))

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self.refresh()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self.refresh()

    def refresh(self) -> None:
        if self.handle is not None and time.monotonic() - self.shown >= REFRESH_SECONDS:
            self.page.print(self.get_renderable())
            text = self.page.export_html(inline_styles=True, code_format="<pre>{code}</pre>")  # and clears the page
            self.handle.update(self.ipython.HTML(text))
            self.shown = time.monotonic()
