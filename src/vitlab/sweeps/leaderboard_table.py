"""The table of a leaderboard: for the terminal, Markdown and HTML, and with full numbers as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from math import isnan, nan
from typing import Any

from vitlab.files import shorten
from vitlab.sweeps.settings import UNSET, is_number, show
from vitlab.sweeps.standings import Row, Standings
from vitlab.sweeps.statistics import Summary
from vitlab.sweeps.wording import duration, interval, quantity, spread

Cell = str | tuple[str, float]  # a text, or one with the number that it is sorted by


def table_of(standings: Standings, settings: int | None = None) -> tuple[list[str], list[list[Cell]]]:
    """Heads and rows; of `settings` many of the settings that vary."""
    several = any(len(row.results) > 1 for row in standings.rows)
    compared = any(row.comparison and row.comparison.test for row in standings.ranked)
    names = dict(list(standings.names.items())[:settings])
    numeric = {key: all(is_number(row.values[key]) for row in standings.rows) for key in names}
    extra = [] if standings.metric == "val/acc" else ["val/acc"]
    heads = ["#", *names.values(), *(["runs"] if several else []), quantity(standings.metric)]
    heads += [*(["95 % interval"] if several else []), *map(quantity, extra), quantity("test/acc"), "time a run"]
    heads += ["beside the best"] if several or compared else []
    rows = []
    for place, row in enumerate(standings.rows, 1):
        cells: list[Cell] = [(str(place), place) if row.score else (UNSET, nan)]
        cells += [(show(row.values[k]), float(row.values[k])) if numeric[k] else show(row.values[k]) for k in names]
        cells += [(str(len(row.results)), len(row.results))] if several else []
        cells += [_score(standings.metric, row.score)]
        if several:
            shown = "one seed: none" if row.score and row.score.n == 1 else interval(standings.metric, row.score)
            cells += [(shown, row.score.low if row.score else nan)]
        cells += [_score(metric, row.accuracy) for metric in extra]
        cells += [_score("test/acc", row.test), (duration(row.seconds), row.seconds)]
        cells += [row.verdict] if several or compared else []
        rows.append(cells)
    return heads, rows


def as_csv(standings: Standings) -> str:
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
        **_figures("test/acc", row.test),
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


def _score(metric: str, summary: Summary | None) -> Cell:
    return (spread(metric, summary) or UNSET, summary.mean if summary else nan)


def as_markdown(heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    texts = [[_in_one_line(cell if isinstance(cell, str) else cell[0]) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *texts])


def _in_one_line(text: str) -> str:
    return " ".join(text.replace("|", "&#124;").split())
