"""Make a leaderboard: print it, and write CSV, Markdown and a web page."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vitlab.config.compose import CONF, read_command
from vitlab.config.types import whole
from vitlab.errors import UserError, did_you_mean
from vitlab.files import shorten, write_text
from vitlab.leaderboard.ranking import Ranking, format_value, is_number, rank, value_of
from vitlab.leaderboard.results import read_results
from vitlab.leaderboard.summary import headline, reproduce_commands, summarise_ranking
from vitlab.leaderboard.table import (
    MAX_LEADING_SETTINGS,
    Cell,
    as_csv,
    as_markdown,
    further_tables,
    make_table,
    metric_label,
    metric_unit,
    row_label,
    text_of,
)
from vitlab.plots import score_plots, setting_plots
from vitlab.plots.score_plots import RankedRow, RankedRuns, Setting
from vitlab.report import html
from vitlab.sweeps.sweep import STUDY_FILE

MAX_SETTINGS = 6  # settings that vary, on the terminal
MAX_NAME = 70  # characters of a row's name in a legend
NO_BREAK = "\N{NO-BREAK SPACE}"


def main() -> None:
    """Read the command line `python -m vitlab.leaderboard <folders>`, then make the leaderboard."""
    folders = [a for a in sys.argv[1:] if not a.startswith("-") and ("=" not in a or Path(a).is_dir())]
    command, others = read_command(CONF, "leaderboard", [a for a in sys.argv[1:] if a not in folders])
    if others:
        key = others[0].key_or_group
        raise UserError(f"unknown key '{key}'{did_you_mean(key, set(map(str, command)))}")
    if not whole(1).fits(command.top):
        raise UserError(f"top={command.top} must be {whole(1).words}")
    if not folders:
        raise UserError("name one or more directories with runs: python -m vitlab.leaderboard outputs/sweeps/<time>")
    make_leaderboard([Path(folder) for folder in folders], command.out and Path(command.out), top=command.top)


def make_leaderboard(folders: Sequence[Path], out: Path | None = None, *, top: int = 20) -> None:
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
    importance = {}
    try:
        target.mkdir(parents=True, exist_ok=True)
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
        console.print(_rich_table(*further_tables(ranking)["Not finished"]), "")
    if ranking.ranked:
        console.print("reproduce the best:")
        for line in reproduce_commands(ranking):
            console.print(f"  {line}", soft_wrap=True)


def _rich_table(heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column, head in enumerate(heads):
        numeric = all(isinstance(row[column], tuple) for row in rows)
        # Numbers are never wrapped; in a narrow terminal, words are, and the heads of numbers have two lines.
        spaces = [index for index, character in enumerate(head) if character == " "]
        if numeric and spaces:
            middle = min(spaces, key=lambda index: abs(index - len(head) / 2))
            head = f"{head[:middle]}\n{head[middle + 1 :]}"
        table.add_column(head, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    for row in rows:
        table.add_row(*map(text_of, row))
    return table


def as_text(ranking: Ranking, title: str) -> str:
    """Return Markdown: table, summary, unfinished runs, and commands."""
    parts = [f"# Leaderboard of {title}", f"{headline(ranking)}."]
    if ranking.rows:
        parts.append(as_markdown(*make_table(ranking)))
    parts.append("\n".join(f"- {sentence}" for sentence in summarise_ranking(ranking)))
    for heading, table in further_tables(ranking).items():
        parts += [f"## {heading}", as_markdown(*table)]
    if ranking.ranked:
        parts += ["## Reproduce the best", "\n".join(["```bash", *reproduce_commands(ranking), "```"])]
    return "\n\n".join(parts) + "\n"


def as_page(ranking: Ranking, title: str) -> str:
    """Return an HTML page: summary, sortable table, figures, unfinished runs, and commands."""
    return html.page(f"Leaderboard of {title}", headline(ranking), *_sections(ranking))


def _sections(ranking: Ranking) -> Iterator[str]:
    runs = _plot_data(ranking)
    yield html.section("Summary", *map(html.paragraph, summarise_ranking(ranking)))
    if ranking.rows:
        heads, rows = make_table(ranking)
        wide = len(ranking.names) > MAX_LEADING_SETTINGS
        rows = [[_unbroken(cell) if wide or isinstance(cell, tuple) else cell for cell in row] for row in rows]
        short = "; ".join(f"{name}: {key}" for key, name in ranking.names.items() if name != key)
        legend = f"Click a column head to sort. ± is the standard deviation over seeds. {short}".strip()
        best = [0] if ranking.ranked else []
        yield html.section("Table", html.paragraph(legend), html.table(heads, rows, sortable=True, marked=best))
        if any(row.interval for row in runs.rows):
            yield html.section("Scores", html.picture(score_plots.draw_scores(runs), score_plots.caption_scores(runs)))
        figure, caption = score_plots.draw_curves_of_runs(runs), score_plots.caption_curves_of_runs(runs)
        yield html.section("Learning curves", html.picture(figure, caption))
    if ranking.ranked and ranking.names:
        figure, caption = setting_plots.draw_effects(runs), setting_plots.caption_effects(runs)
        yield html.section("Effect of each setting", html.picture(figure, caption))
        figure, caption = setting_plots.draw_parallel(runs), setting_plots.caption_parallel(runs)
        yield html.section("All settings together", html.picture(figure, caption))
    for heading, table in further_tables(ranking).items():
        yield html.section(heading, html.table(*table, sortable=True))
    if ranking.ranked:
        yield html.section("Reproduce the best", html.code("\n".join(reproduce_commands(ranking))))


def _unbroken(cell: Cell) -> Cell:
    text = text_of(cell).replace(" ", NO_BREAK)
    return text if isinstance(cell, str) else (text, cell[1])


def _plot_data(ranking: Ranking) -> RankedRuns:
    """Return what the figures show, as plain numbers and texts."""
    metric, (_, factor, _) = ranking.metric, metric_unit(ranking.metric)
    rows = []
    for place, row in enumerate(ranking.rows, 1):
        label = row_label(row, ranking)
        name = f"#{place}  {label}" if len(label) <= MAX_NAME else f"#{place}"
        scores = [factor * result.metrics[metric] for result in row.results] if row.score.n else []
        interval = (factor * row.score.low, factor * row.score.high) if row.score.n > 1 else None
        rows.append(RankedRow(name, scores, interval, [result.epochs for result in row.results]))
    runs = [result for row in ranking.ranked for result in row.results]
    settings = []
    for key, name in ranking.names.items():
        values = [value_of(run, key) for run in runs]
        settings.append(Setting(key, name, [v if is_number(v) else format_value(v) for v in values]))
    unfinished = [result.epochs for result in ranking.unfinished]
    return RankedRuns(metric_label(metric), ranking.mode == "min", rows, settings, unfinished)
