"""The table of a leaderboard: for the terminal, Markdown and HTML, and with full numbers as CSV."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from math import isnan, nan
from typing import Any

from vitlab.files import shorten
from vitlab.leaderboard.format import duration, interval, quantity, spread
from vitlab.leaderboard.ranking import Ranking, Row, test_metric
from vitlab.leaderboard.statistics import Summary
from vitlab.leaderboard.varied_settings import UNSET, is_number, show

Cell = str | tuple[str, float]  # a text, or one with the number that it is sorted by
Column = tuple[str, Sequence[Cell]]
FEW = 5  # settings that stand before the figures


def table_of(standings: Ranking, settings: int | None = None) -> tuple[list[str], list[list[Cell]]]:
    """Heads and rows; of `settings` many of the settings that vary. Many settings stand behind the figures."""
    chosen = [_setting(standings, key) for key in list(standings.names)[:settings]]
    places = ("#", [(str(i), i) if row.score else (UNSET, nan) for i, row in enumerate(standings.rows, 1)])
    figures = list(_figure_columns(standings))
    columns = [places, *chosen, *figures] if len(chosen) <= FEW else [places, *figures, *chosen]
    return [head for head, _ in columns], [list(row) for row in zip(*(cells for _, cells in columns), strict=True)]


def _setting(standings: Ranking, key: str) -> Column:
    values = [row.values[key] for row in standings.rows]
    numeric = all(map(is_number, values))
    return standings.names[key], [(show(value), float(value)) if numeric else show(value) for value in values]


def _figure_columns(standings: Ranking) -> Iterator[Column]:
    metric, rows = standings.metric, standings.rows
    several = any(len(row.results) > 1 for row in rows)
    if several:
        yield "runs", [(str(len(row.results)), len(row.results)) for row in rows]
    yield quantity(metric), [_score(metric, row.score) for row in rows]
    if several:
        yield "95 % interval", [_interval(metric, row.score) for row in rows]
    if metric != "val/acc":
        yield quantity("val/acc"), [_score("val/acc", row.accuracy) for row in rows]
    yield quantity(test_metric(metric)), [_score("test/acc", row.test) for row in rows]
    yield "time a run", [(duration(row.seconds), row.seconds) for row in rows]
    if several:
        yield "beside the best", [row.verdict for row in rows]


def as_csv(standings: Ranking) -> str:
    """A row a row, accuracies as fractions, times in seconds, settings by their whole names."""
    metric, text = standings.metric, io.StringIO()
    rows = [_record(place, row, metric) for place, row in enumerate(standings.rows, 1)]
    heads = list(rows[0]) if rows else []
    writer = csv.DictWriter(text, heads, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _record(place: int, row: Row, metric: str) -> dict[str, Any]:
    return {
        "place": place if row.score else "",
        **{key: show(value) if isinstance(value, list | bool) else value for key, value in row.values.items()},
        "runs": len(row.results),
        "seeds": " ".join(map(str, row.seeds)),
        **_figures(metric, row.score),
        **(_figures("val/acc", row.accuracy) if metric != "val/acc" else {}),
        **_figures(test_metric(metric), row.test),
        "seconds": round(row.seconds, 1),
        "test": row.comparison.test if row.comparison else "",
        "p (Holm)": _filled(row.comparison.p) if row.comparison else "",
        "verdict": row.verdict,
        "directories": " ".join(shorten(result.path) for result in row.results),
    }


def _figures(metric: str, summary: Summary | None) -> Mapping[str, Any]:
    of = summary or Summary(0, nan, nan, nan, nan)
    figures = {"mean": of.mean, "std": of.std, "95 % low": of.low, "95 % high": of.high}
    return {f"{metric} {name}": _filled(value) for name, value in figures.items()}


def _filled(value: float) -> float | str:
    return "" if isnan(value) else value


def _interval(metric: str, summary: Summary | None) -> Cell:
    if summary is None:
        return UNSET, nan
    return interval(metric, summary) or "one seed: none", summary.low


def _score(metric: str, summary: Summary | None) -> Cell:
    return (spread(metric, summary) or UNSET, summary.mean if summary else nan)


def as_markdown(heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    texts = [[_in_one_line(cell if isinstance(cell, str) else cell[0]) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *texts])


def _in_one_line(text: str) -> str:
    return " ".join(text.replace("|", "&#124;").split())
