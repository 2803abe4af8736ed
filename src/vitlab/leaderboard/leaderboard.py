"""Make a leaderboard: print it, and write CSV, Markdown and a web page."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vitlab.config.compose import CONF, read_command
from vitlab.config.types import whole
from vitlab.errors import UserError, did_you_mean
from vitlab.files import shorten, write_text
from vitlab.leaderboard.ranking import Ranking, rank
from vitlab.leaderboard.results import read_results
from vitlab.leaderboard.summary import headline, reproduce_commands, summarise_ranking
from vitlab.leaderboard.table import Cell, as_csv, make_table, text_of, unfinished_table
from vitlab.leaderboard.web_page import as_page, as_text
from vitlab.sweeps.sweep import STUDY_FILE

MAX_SETTINGS = 6  # settings that vary, on the terminal


def main() -> None:
    """Read the command line `python -m vitlab.leaderboard <folders>`, then make the leaderboard."""
    folders = [a for a in sys.argv[1:] if not a.startswith("-") and ("=" not in a or Path(a).is_dir())]
    command, others = read_command(CONF, "leaderboard", [a for a in sys.argv[1:] if a not in folders])
    for other in others:
        key = other.key_or_group
        raise UserError(f"unknown key '{key}'{did_you_mean(key, set(map(str, command)))}")
    if not whole(1).fits(command.top):
        raise UserError(f"top={command.top} must be {whole(1).words}")
    if not folders:
        raise UserError("name one or more directories with runs: python -m vitlab.leaderboard outputs/sweeps/<time>")
    make_leaderboard([Path(folder) for folder in folders], command.out and Path(command.out), top=command.top)


def make_leaderboard(folders: Sequence[Path], out: Path | None = None, *, top: int = 20) -> Ranking:
    """Read runs, print their ranking, and write `leaderboard.csv`, `.md` and `.html`, replacing older ones.

    Args:
        folders: Directories of sweeps or runs, or directories above them.
        out: Directory for the files; None: `folders`, if that is one directory.
        top: Maximum number of rows on the terminal.
    """
    if out is None and len(folders) != 1:
        raise UserError("several directories: choose one for the leaderboard with out=<folder>")
    results = read_results(folders)
    target = out or folders[0]
    title = ", ".join(shorten(folder) for folder in folders)
    try:
        target.mkdir(parents=True, exist_ok=True)
        importance = {}
        if len(folders) == 1 and (folders[0] / STUDY_FILE).exists():
            from vitlab.sweeps.search import parameter_importance  # importing Optuna takes half a second

            importance = parameter_importance(folders[0])
        ranking = rank(results, importance)
        write_text(target / "leaderboard.csv", as_csv(ranking))
        write_text(target / "leaderboard.md", as_text(ranking, title))
        write_text(target / "leaderboard.html", as_page(ranking, title))
    except OSError as error:
        reason = f"cannot write the leaderboard to {target} ({error.strerror})"
        raise UserError(f"{reason}: choose another directory with out=...") from error
    width = None if sys.stdout.isatty() else 160  # wide enough in a file
    console = Console(markup=False, highlight=False, emoji=False, width=width)
    _print(console, ranking, title, top)
    console.print(f"written: {shorten(target / 'leaderboard.html')}, .md, .csv", soft_wrap=True)
    return ranking


def _print(console: Console, ranking: Ranking, title: str, top: int) -> None:
    console.print(f"leaderboard of {title}: {headline(ranking)}")
    if ranking.rows:
        heads, rows = make_table(ranking, MAX_SETTINGS)
        console.print(_rich_table(heads, rows[:top]))
        more_rows, more_settings = len(rows) - top, len(ranking.names) - MAX_SETTINGS
        for count, what in ((more_rows, "rows"), (more_settings, "settings")):
            if count > 0:
                console.print(f"... and {count} more {what} in the files")
    for sentence in summarise_ranking(ranking):
        console.print(sentence)
    if ranking.unfinished:
        console.print(_rich_table(*unfinished_table(ranking)), "")
    if ranking.ranked:
        console.print("reproduce the best:")
        for line in reproduce_commands(ranking):
            console.print(f"  {line}", soft_wrap=True)


def _rich_table(heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column, head in enumerate(heads):
        numeric = all(isinstance(row[column], tuple) for row in rows)
        # Numbers are never wrapped; in a narrow terminal, words are, and the heads of numbers have two lines.
        shown = _in_two_lines(head) if numeric else head
        table.add_column(shown, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    for row in rows:
        table.add_row(*map(text_of, row))
    return table


def _in_two_lines(head: str) -> str:
    spaces = [index for index, character in enumerate(head) if character == " "]
    middle = min(spaces, key=lambda index: abs(index - len(head) / 2), default=None)
    return head if middle is None else f"{head[:middle]}\n{head[middle + 1 :]}"
