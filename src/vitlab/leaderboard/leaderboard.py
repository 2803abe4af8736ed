"""The answer that runs give together: who is best, and by more than chance?"""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vitlab.errors import UserError
from vitlab.files import shorten, write_text
from vitlab.leaderboard.ranking import Ranking, stand
from vitlab.leaderboard.results import read_results
from vitlab.leaderboard.summary import commands, findings
from vitlab.leaderboard.table import Cell, as_csv, table_of
from vitlab.leaderboard.web_page import as_page, as_text, summary, unfinished_of
from vitlab.sweeps.sweep_record import STUDY_FILE

SETTINGS = 6  # that vary, shown on the terminal


def make_leaderboard(
    folders: Sequence[Path],
    out: Path | None = None,
    *,
    top: int = 20,
) -> Ranking:
    """Reads runs, prints who is best, and writes `leaderboard.csv`, `.md` and `.html`, over older ones.

    Args:
        folders: Each a sweep's, a run's, or one with runs below it.
        out: Where the files go; None: to the one folder.
        top: Rows on the terminal at most.

    Raises:
        UserError: there is no run, or no place for the files.
    """
    if out is None and len(folders) != 1:
        raise UserError("several directories: say where the leaderboard goes, with out=<folder>")
    results = read_results(folders)
    place = out or folders[0]
    title = ", ".join(shorten(folder) for folder in folders)
    try:
        place.mkdir(parents=True, exist_ok=True)
        standings = stand(results, _importance(folders))
        write_text(place / "leaderboard.csv", as_csv(standings))
        write_text(place / "leaderboard.md", as_text(standings, title))
        write_text(place / "leaderboard.html", as_page(standings, title))
    except OSError as error:
        reason = f"can't write the leaderboard to {place} ({error.strerror})"
        raise UserError(f"{reason}: name another folder with out=...") from error
    _print(standings, title, top)
    page = shorten(place / "leaderboard.html")
    Console(soft_wrap=True, highlight=False).print(f"written: {page}, .md, .csv", markup=False)
    return standings


def _importance(folders: Sequence[Path]) -> dict[str, float]:
    if len(folders) != 1 or not (folders[0] / STUDY_FILE).exists():
        return {}
    from vitlab.sweeps.search import parameter_importance  # importing Optuna takes half a second

    return parameter_importance(folders[0])


def _print(standings: Ranking, title: str, top: int) -> None:
    # What goes to a file has the width that it needs.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(f"leaderboard of {title}: {summary(standings)}", markup=False)
    if standings.rows:
        heads, rows = table_of(standings, SETTINGS)
        console.print(_table(heads, rows[:top]))
        if len(rows) > top:
            console.print(f"... and {len(rows) - top} more rows in the files", markup=False)
        if len(standings.names) > SETTINGS:
            console.print(f"... and {len(standings.names) - SETTINGS} more settings in the files", markup=False)
    for sentence in findings(standings):
        console.print(sentence, markup=False)
    if standings.unfinished:
        console.print(_table(*unfinished_of(standings)), "")
    if standings.ranked:
        console.print("the best again:", markup=False)
        for line in commands(standings):
            console.print(f"  {line}", markup=False, soft_wrap=True)


def _table(heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, head in enumerate(heads):
        numeric = all(isinstance(row[place], tuple) for row in rows)
        # Figures stay whole; where there is little room, words are folded.
        shown = _in_two_lines(head) if numeric else head
        table.add_column(escape(shown), justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    for row in rows:
        table.add_row(*(escape(cell if isinstance(cell, str) else cell[0]) for cell in row))
    return table


def _in_two_lines(head: str) -> str:
    spaces = [place for place, letter in enumerate(head) if letter == " "]
    if not spaces:
        return head
    middle = min(spaces, key=lambda place: abs(place - len(head) / 2))
    return f"{head[:middle]}\n{head[middle + 1 :]}"
