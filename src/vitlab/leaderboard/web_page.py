"""The page and the Markdown file of a leaderboard."""

from collections.abc import Iterator

from vitlab.files import shorten
from vitlab.leaderboard.format import factor, name, name_of, quantity
from vitlab.leaderboard.ranking import Ranking
from vitlab.leaderboard.results import Result
from vitlab.leaderboard.summary import commands, findings, typed_for
from vitlab.leaderboard.table import FEW, Cell, as_markdown, table_of
from vitlab.leaderboard.varied_settings import is_number, show, value_of
from vitlab.plots.score_plots import (
    RankedRow,
    RankedRuns,
    Setting,
    caption_curves_of_runs,
    caption_scores,
    draw_curves_of_runs,
    draw_scores,
)
from vitlab.plots.setting_plots import caption_effects, caption_parallel, draw_effects, draw_parallel
from vitlab.report.html import code, page, paragraph, picture, section, table

NO_BREAK = "\N{NO-BREAK SPACE}"


def as_page(standings: Ranking, title: str) -> str:
    return page(f"Leaderboard of {title}", summary(standings), *_sections(standings))


def as_text(standings: Ranking, title: str) -> str:
    """Markdown: the table, what can be said, what is not in the table, how to do the best again."""
    parts = [f"# Leaderboard of {title}", f"{summary(standings)}."]
    if standings.rows:
        parts.append(as_markdown(*table_of(standings)))
    parts.append("\n".join(f"- {sentence}" for sentence in findings(standings)))
    if standings.importance:
        parts += ["## Importance of parameters", as_markdown(*_importance(standings))]
    if standings.unfinished:
        parts += ["## Not finished", as_markdown(*unfinished_of(standings))]
    if standings.ranked:
        parts += ["## The best again", "\n".join(["```bash", *commands(standings), "```"])]
    return "\n\n".join(parts) + "\n"


def summary(standings: Ranking) -> str:
    """One line: how many runs, and by what they are ordered."""
    runs = _count(sum(len(row.results) for row in standings.rows), "finished run")
    rows, metric = _count(len(standings.rows), "row"), name_of(standings.metric)
    return f"{runs} in {rows}, best first by {metric}; test accuracy stands beside it and decides nothing"


def unfinished_of(standings: Ranking) -> tuple[list[str], list[list[Cell]]]:
    """Heads and rows of the runs that did not get to their end."""
    heads = ["run", "settings", "status", "epochs", "reason", "log"]
    return heads, [_unfinished(result, standings) for result in standings.unfinished]


def _unfinished(result: Result, standings: Ranking) -> list[Cell]:
    log = shorten(result.log) if result.log else "none"
    done = len(result.epochs)
    typed = typed_for(result, standings)
    return [shorten(result.path), typed, result.status, (str(done), done), result.reason, log]


def _sections(standings: Ranking) -> Iterator[str]:
    runs = plot_data(standings)
    yield section("What can be said", *map(paragraph, findings(standings)))
    if standings.rows:
        heads, rows = table_of(standings)
        wide = len(standings.names) > FEW
        rows = [[_unbroken(cell) if wide or isinstance(cell, tuple) else cell for cell in row] for row in rows]
        best = [0] if standings.ranked else []
        yield section("Table", *_legend(standings), table(heads, rows, sortable=True, marked=best))
        if any(row.score and row.score.n > 1 for row in standings.ranked):
            yield section("Scores", picture(draw_scores(runs), caption_scores(runs)))
        yield section("Learning curves", picture(draw_curves_of_runs(runs), caption_curves_of_runs(runs)))
    if standings.ranked and standings.names:
        yield section("Effect of each setting", picture(draw_effects(runs), caption_effects(runs)))
        yield section("All settings together", picture(draw_parallel(runs), caption_parallel(runs)))
    if standings.importance:
        yield section("Importance of parameters", table(*_importance(standings), sortable=True))
    if standings.unfinished:
        yield section("Not finished", table(*unfinished_of(standings)))
    if standings.ranked:
        yield section("The best again", code("\n".join(commands(standings))))


def _unbroken(cell: Cell) -> Cell:
    return cell.replace(" ", NO_BREAK) if isinstance(cell, str) else (cell[0].replace(" ", NO_BREAK), cell[1])


def _legend(standings: Ranking) -> Iterator[str]:
    short = [f"{name}: {key}" for key, name in standings.names.items() if name != key]
    hint = "A click on a column's head sorts by it."
    yield paragraph(f"{hint} ± is the standard deviation over seeds. {'; '.join(short)}".strip())


def plot_data(standings: Ranking) -> RankedRuns:
    """What the figures show, as plain numbers and strings."""
    unit = factor(standings.metric)
    rows = []
    for place, row in enumerate(standings.rows, 1):
        scores = [unit * result.metrics[standings.metric] for result in row.results] if row.score else []
        interval = (unit * row.score.low, unit * row.score.high) if row.score and row.score.n > 1 else None
        rows.append(RankedRow(name(place, row, standings), scores, interval, [r.epochs for r in row.results]))
    ranked = [result for row in standings.ranked for result in row.results]
    settings = []
    for key, short in standings.names.items():
        values = [value_of(result, key) for result in ranked]
        settings.append(Setting(key, short, [value if is_number(value) else show(value) for value in values]))
    return RankedRuns(
        score=quantity(standings.metric),
        lowest_is_best=standings.mode == "min",
        rows=rows,
        settings=settings,
        unfinished=[result.epochs for result in standings.unfinished],
    )


def _importance(standings: Ranking) -> tuple[list[str], list[list[Cell]]]:
    shares = sorted(standings.importance.items(), key=lambda item: -item[1])
    return ["parameter", "share of the score's variation"], [[key, (f"{share:.0%}", share)] for key, share in shares]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
