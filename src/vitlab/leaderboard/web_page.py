"""The web page and the Markdown file of a leaderboard."""

from collections.abc import Iterator

from vitlab.files import shorten
from vitlab.leaderboard.ranking import Ranking, format_value, is_number, value_of
from vitlab.leaderboard.results import Result
from vitlab.leaderboard.summary import headline, reproduce_commands, summarise_ranking
from vitlab.leaderboard.table import (
    MAX_LEADING_SETTINGS,
    Cell,
    as_markdown,
    make_table,
    metric_factor,
    metric_label,
    row_label,
)
from vitlab.plots.leaderboard_plots import (
    RankedRow,
    RankedRuns,
    Setting,
    draw_curves_of_runs,
    draw_effects,
    draw_parallel,
    draw_scores,
)
from vitlab.report.html import code, page, paragraph, picture, section, table

MAX_NAME = 70  # characters of a row's name in a legend
NO_BREAK = "\N{NO-BREAK SPACE}"


def as_page(ranking: Ranking, title: str) -> str:
    """Return an HTML page: summary, sortable table, figures, unfinished runs, and commands."""
    return page(f"Leaderboard of {title}", headline(ranking), *_sections(ranking))


def as_text(ranking: Ranking, title: str) -> str:
    """Return Markdown: table, summary, unfinished runs, and commands."""
    parts = [f"# Leaderboard of {title}", f"{headline(ranking)}."]
    if ranking.rows:
        parts.append(as_markdown(*make_table(ranking)))
    parts.append("\n".join(f"- {sentence}" for sentence in summarise_ranking(ranking)))
    if ranking.importance:
        parts += ["## Importance of parameters", as_markdown(*_importance_table(ranking))]
    if ranking.unfinished:
        parts += ["## Not finished", as_markdown(*unfinished_table(ranking))]
    if ranking.ranked:
        parts += ["## Reproduce the best", "\n".join(["```bash", *reproduce_commands(ranking), "```"])]
    return "\n\n".join(parts) + "\n"


def unfinished_table(ranking: Ranking) -> tuple[list[str], list[list[Cell]]]:
    """Return heads and rows of the runs that did not finish; settings that all runs share are left out."""
    everything = [*ranking.unfinished, *(run for row in ranking.rows for run in row.results)]

    def cells(result: Result) -> list[Cell]:
        own = " ".join(o for o in result.overrides if not all(o in other.overrides for other in everything))
        epochs = len(result.epochs)
        log = shorten(result.log) if result.log else "none"
        return [shorten(result.path), own, result.status, (str(epochs), epochs), result.reason, log]

    return ["run", "settings", "status", "epochs", "reason", "log"], list(map(cells, ranking.unfinished))


def plot_data(ranking: Ranking) -> RankedRuns:
    """Return what the figures show, as plain numbers and texts."""
    metric, factor = ranking.metric, metric_factor(ranking.metric)
    rows = []
    for place, row in enumerate(ranking.rows, 1):
        label = row_label(row, ranking)
        name = f"#{place}  {label}" if len(label) <= MAX_NAME else f"#{place}"
        scores = [factor * result.metrics[metric] for result in row.results] if row.score else []
        interval = (factor * row.score.low, factor * row.score.high) if row.score and row.score.n > 1 else None
        rows.append(RankedRow(name, scores, interval, [result.epochs for result in row.results]))
    runs = [result for row in ranking.ranked for result in row.results]
    settings = []
    for key, name in ranking.names.items():
        values = [value_of(run, key) for run in runs]
        settings.append(Setting(key, name, [v if is_number(v) else format_value(v) for v in values]))
    unfinished = [result.epochs for result in ranking.unfinished]
    return RankedRuns(metric_label(metric), ranking.mode == "min", rows, settings, unfinished)


def _sections(ranking: Ranking) -> Iterator[str]:
    runs = plot_data(ranking)
    yield section("Summary", *map(paragraph, summarise_ranking(ranking)))
    if ranking.rows:
        heads, rows = make_table(ranking)
        wide = len(ranking.names) > MAX_LEADING_SETTINGS
        rows = [[_unbroken(cell) if wide or isinstance(cell, tuple) else cell for cell in row] for row in rows]
        short = "; ".join(f"{name}: {key}" for key, name in ranking.names.items() if name != key)
        legend = paragraph(f"Click a column head to sort. ± is the standard deviation over seeds. {short}".strip())
        yield section("Table", legend, table(heads, rows, sortable=True, marked=[0] if ranking.ranked else []))
        if any(row.interval for row in runs.rows):
            yield section("Scores", picture(*draw_scores(runs)))
        yield section("Learning curves", picture(*draw_curves_of_runs(runs)))
    if ranking.ranked and ranking.names:
        yield section("Effect of each setting", picture(*draw_effects(runs)))
        yield section("All settings together", picture(*draw_parallel(runs)))
    if ranking.importance:
        yield section("Importance of parameters", table(*_importance_table(ranking), sortable=True))
    if ranking.unfinished:
        yield section("Not finished", table(*unfinished_table(ranking)))
    if ranking.ranked:
        yield section("Reproduce the best", code("\n".join(reproduce_commands(ranking))))


def _unbroken(cell: Cell) -> Cell:
    return cell.replace(" ", NO_BREAK) if isinstance(cell, str) else (cell[0].replace(" ", NO_BREAK), cell[1])


def _importance_table(ranking: Ranking) -> tuple[list[str], list[list[Cell]]]:
    largest_first = sorted(ranking.importance.items(), key=lambda item: -item[1])
    return ["parameter", "importance"], [[key, (f"{fraction:.0%}", fraction)] for key, fraction in largest_first]
