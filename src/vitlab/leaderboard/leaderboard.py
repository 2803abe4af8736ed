"""Make a leaderboard: print it, and write CSV, Markdown and a web page."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vitlab.arguments.entry_points import uses_console_script
from vitlab.errors import UserError
from vitlab.files import ROOT, shorten, write_text
from vitlab.leaderboard import leaderboard_plots as plots
from vitlab.leaderboard.ranking import ALPHA, Ranking, Row, rank, summarise_metric
from vitlab.leaderboard.results import read_results
from vitlab.leaderboard.table import (
    MAX_LEADING_SETTINGS,
    Cell,
    Metric,
    as_csv,
    as_markdown,
    further_tables,
    make_table,
    row_label,
    text_of,
)
from vitlab.report.figure_layout import PageFigure, arrange
from vitlab.report.page import page_figure, render_page
from vitlab.runs.directory import RunDirectory
from vitlab.runs.trust import trust
from vitlab.sweeps.sweep import STUDY_FILE
from vitlab.system import join_command, quote_for_shell

MAX_SETTINGS = 6  # settings that vary, on the terminal
NO_BREAK = "\N{NO-BREAK SPACE}"
MAX_NAMED = 20  # rows in a sentence
DIFFERENCES = {  # path in the manifest -> sentence if the runs differ in it
    ("data", "val", "sha256"): "Warning: the runs were validated on different images, so the ranking means little.",
    ("data", "test", "sha256"): "Warning: the runs were tested on different images.",
    ("git", "revision"): "The runs used different revisions of the code.",
    ("versions", "torch"): "The runs used different versions of torch.",
    ("hardware",): "The runs used different machines or numbers of threads, so their times are not comparable.",
}


def make_leaderboard(
    folders: Sequence[Path],
    out: Path | None = None,
    *,
    metric: str | None = None,
    tags: Sequence[str] = (),
    top: int = 20,
) -> None:
    """Read runs, print their ranking, and write `leaderboard.csv`, `.md` and `.html`, replacing older ones.

    Args:
        folders: Directories of sweeps or runs, or directories above them.
        out: Directory for the files; None: `folders`, if that is one directory.
        metric: Ranks the rows; None: the metric that selected the checkpoints of all runs, or else `val/acc`.
        tags: Only runs with all of these are read.
        top: Maximum number of rows on the terminal.
    """
    if out is None and len(folders) != 1:
        raise UserError("several directories: choose one for the leaderboard with out=<folder>")
    results = [run for run in read_results(folders) if set(tags) <= set(run.tags)]
    if not results:
        raise UserError(f"tags=[{','.join(tags)}]: none of the runs has them all")
    target = out or folders[0]
    title = ", ".join(shorten(folder) for folder in folders)
    importance = {}
    try:
        target.mkdir(parents=True, exist_ok=True)
        if len(folders) == 1 and (folders[0] / STUDY_FILE).exists():
            from vitlab.sweeps.search import parameter_importance  # importing Optuna takes half a second

            importance = parameter_importance(folders[0])
        ranking = rank(results, importance, metric)
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
    heads, rows = make_table(ranking)
    wide = len(ranking.names) > MAX_LEADING_SETTINGS
    rows = [[_unbroken(cell) if wide or isinstance(cell, tuple) else cell for cell in row] for row in rows]
    figures: dict[str, list[PageFigure]] = {}
    if any(row.score.n > 1 for row in ranking.ranked):
        figures["Scores"] = [page_figure("Score of each run by row", *plots.draw_scores(ranking))]
    if len(ranking.ranked) > 1:
        figures["Time"] = [page_figure("Score by the duration of a run", *plots.draw_times(ranking))]
    if ranking.rows:
        figures["Learning curves"] = [page_figure("Learning curves", *plots.draw_curves_of_runs(ranking))]
    if ranking.ranked and ranking.names:
        figures["Effect of the settings"] = [
            page_figure("Score by the value of each setting", *plots.draw_effects(ranking)),
            page_figure("All settings of each run", *plots.draw_parallel(ranking)),
        ]
    return render_page(
        "leaderboard/leaderboard.html",
        title=f"Leaderboard of {title}",
        headline=headline(ranking),
        summary=summarise_ranking(ranking),
        ranking=ranking,
        heads=heads,
        rows=rows,
        figures_by_section={heading: list(arrange(drawn)) for heading, drawn in figures.items()},
        further_tables=further_tables(ranking),
        commands=reproduce_commands(ranking),
    )


def _unbroken(cell: Cell) -> Cell:
    text = text_of(cell).replace(" ", NO_BREAK)
    return text if isinstance(cell, str) else (text, cell[1])


def headline(ranking: Ranking) -> str:
    """Say in one line how many runs there are and what ranks them."""
    runs, rows = sum(len(row.results) for row in ranking.rows), len(ranking.rows)
    counts = f"{runs} finished {'run' if runs == 1 else 'runs'} in {rows} {'row' if rows == 1 else 'rows'}"
    return f"{counts}, best first by {Metric(ranking.metric).name}; the test accuracy does not affect the order"


def summarise_ranking(ranking: Ranking) -> list[str]:
    """Return sentences: the best row, the rows that are significantly worse, and caveats."""
    return [*_best(ranking), *_caveats(ranking), *_comparisons(ranking), *_rows_left_out(ranking)]


def reproduce_commands(ranking: Ranking) -> list[str]:
    """Return the commands that repeat the best row's runs, each in a new directory."""
    best = ranking.ranked[0].results if ranking.ranked else []
    trusted = " ".join(["", *trust(RunDirectory(best[0].path).config())]) if best else ""
    return [f"{_train()} {quote_for_shell(f'reproduce={shorten(result.path)}')}{trusted}" for result in best]


def _train() -> str:
    return "vitlab train" if uses_console_script() else f"python {quote_for_shell(shorten(ROOT / 'train.py'))}"


def _best(ranking: Ranking) -> Iterator[str]:
    if not ranking.rows:
        yield "No run is finished."
    elif not ranking.ranked:
        yield "No run was validated, so there is no best one: test images are not used to select a run."
    else:
        best, metric = ranking.ranked[0], Metric(ranking.metric)
        how = f"one {ranking.unit}, so no interval"
        if best.score.n > 1:
            std, interval = metric.amount(best.score.std), metric.interval(best.score)
            seeds, folds = ({getattr(run, of) for run in best.results} for of in ("seed", "fold"))
            kind = {len(seeds): "seeds", len(folds): "folds"}.get(best.score.n, "runs")
            count = f"{best.score.n} {kind}"
            how = f"mean of {count}, standard deviation {std}, 95% confidence interval {interval}"
        on_test = summarise_metric(best.results, metric.test_key)
        test = f"; on the test images {Metric(metric.test_key).amount(on_test.mean)}" if on_test.n else ""
        score = f"{metric.amount(best.score.mean)} ({how})"
        yield f"Best by {metric.name}: {row_label(best, ranking)}, with {score}{test}."


def _comparisons(ranking: Ranking) -> Iterator[str]:
    others, unit = ranking.ranked[1:], f"{ranking.unit}s"
    tested = [row for row in others if row.comparison.test]
    worse = [row for row in tested if row.comparison.p < ALPHA]
    level = [row for row in tested if row.comparison.p >= ALPHA]
    untested = [row for row in others if not row.comparison.test]
    if tested:
        kinds = {"paired": f"paired over common {unit}", "Welch": f"Welch's where {unit} differ"}
        used = {row.comparison.test for row in tested}
        how = f"t-tests, {' or '.join(words for test, words in kinds.items() if test in used)}"
        if len(tested) > 1:
            how += f"; p-values corrected for {len(tested)} comparisons (Holm)"
        if worse:
            yield f"Significantly worse than the best: {_places(worse, ranking)} ({how})."
        else:
            yield f"No row is significantly worse than the best ({how})."
    if level:
        yield f"No significant difference from the best: {_places(level, ranking)}. More {unit} may reveal one."
    if others and all(len(row.results) == 1 for row in ranking.ranked):
        best = ranking.ranked[0].results[0]
        key, count = ("seed", 3) if best.fold is None else ("data.fold", int(best.settings["data.folds"]))
        overrides = [o for o in best.overrides if not o.startswith((f"{key}=", "hydra."))]
        several = f"{key}={','.join(map(str, range(count)))}"
        add = f" To add {unit}: {_train()} -m {join_command(overrides)} {several}" if overrides else ""
        yield f"One {ranking.unit} per row allows no comparison.{add}"
    elif untested:
        yield f"Cannot be compared with the best: {_places(untested, ranking)} (too few {unit}, or equal scores)."
    if len(others) > 1:
        yield "The best row was selected by these same scores: among equally good rows, the luckiest ranks first."


def _rows_left_out(ranking: Ranking) -> Iterator[str]:
    if ranking.unranked:
        labels = "; ".join(row_label(row, ranking) for row in ranking.unranked)
        yield f"Last and without a rank, because {Metric(ranking.metric).name} is missing or not finite: {labels}."
    if ranking.repeated:
        runs = ", ".join(shorten(result.path) for result in ranking.repeated)
        same = {"seed": "settings and seed", "fold": "settings, fold and seed"}[ranking.unit]
        yield f"Left out, because a newer run has the same {same}: {runs}."
    if ranking.unfinished:
        counts = Counter(result.status for result in ranking.unfinished)
        kinds = ", ".join(f"{count} {status}" for status, count in counts.items())
        yield f"Not in the table, because they did not finish: {kinds}; see the list below."


def _caveats(ranking: Ranking) -> Iterator[str]:
    results = [result for row in ranking.rows for result in row.results]
    for path, sentence in DIFFERENCES.items():
        found: dict[int, set[str]] = {}
        for result in results:
            of_fold = (result.fold or 0) if path[:2] == ("data", "val") else 0  # each has other images, as it should
            found.setdefault(of_fold, set()).add(str(_select(path, result.manifest)))
        if any(len(values) > 1 for values in found.values()):
            yield sentence
    if any(_select(("git", "dirty"), result.manifest) for result in results):
        yield "Some runs used code with uncommitted changes."


def _select(path: Sequence[str], node: Any) -> Any:
    for key in path:
        node = (node or {}).get(key)
    return node


def _places(rows: Sequence[Row], ranking: Ranking) -> str:
    places = [f"#{place}" for place, row in enumerate(ranking.ranked, 1) if row in rows]
    return ", ".join(places[:MAX_NAMED]) + (f" and {len(places) - MAX_NAMED} more" if len(places) > MAX_NAMED else "")
