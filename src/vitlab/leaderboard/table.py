"""The table of a leaderboard, for terminal, page, Markdown and CSV."""

import csv
import io
from collections.abc import Iterator, Sequence
from math import isnan, nan
from typing import Any

from vitlab.files import shorten
from vitlab.leaderboard.ranking import UNSET, Ranking, Row, Summary, format_value, is_number, summarise_metric
from vitlab.metrics import MetricKind, metric_kind, metric_name
from vitlab.runs.console import format_duration

Cell = str | tuple[str, float]  # a text, or a text with the number to sort it by
Column = tuple[str, Sequence[Cell]]
Table = tuple[list[str], list[list[Cell]]]  # heads and rows
MAX_LEADING_SETTINGS = 5  # more settings follow after the scores
SPLITS = {"val": "validation", "test": "test", "train": "training"}


class Metric:
    """A metric, such as `val/acc_ema`, in words and with its unit."""

    def __init__(self, key: str) -> None:
        self.key = key
        split, name = key.partition("/")[0], metric_name(key)
        kind = metric_kind(key) or MetricKind(name, unit="")
        self.name = f"{SPLITS.get(split, split)} {kind.title}"
        suffix = "_ema" if key.endswith("_ema") else ""
        if suffix:
            self.name += " of the EMA weights"
        self.test_key = f"test/acc{suffix}"  # the test accuracy of the same weights
        self.unit, self.factor, self.digits = (kind.unit, 100, 2) if kind.unit == "%" else (kind.unit, 1, 4)
        self.label = f"{self.name}, {self.unit}".removesuffix(", ")

    def number(self, value: float) -> str:
        """Format a value without the unit; empty for NaN."""
        return "" if isnan(value) else f"{self.factor * value:.{self.digits}f}"

    def amount(self, value: float) -> str:
        return f"{self.number(value)} {self.unit}".rstrip()

    def mean(self, summary: Summary) -> str:
        """Format mean and standard deviation."""
        return self.number(summary.mean) + (f" ± {self.number(summary.std)}" if summary.n > 1 else "")

    def interval(self, summary: Summary) -> str:
        """Format the 95% confidence interval."""
        if summary.n < 2:
            return "one run: none" if summary.n else ""
        return f"{self.number(summary.low)} to {self.number(summary.high)}"


def row_label(row: Row, ranking: Ranking) -> str:
    """Name a row by the settings that vary, or by the name of its run if none does."""
    parts = [f"{name} {format_value(row.values[key])}" for key, name in ranking.names.items()]
    return ", ".join(parts) or str(row.results[0].settings.get("name"))


def text_of(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell[0]


def make_table(ranking: Ranking, max_settings: int | None = None) -> Table:
    """Return column heads and rows, with at most `max_settings` of the settings that vary."""
    settings: list[Column] = []
    for key in list(ranking.names)[:max_settings]:
        values = [row.values[key] for row in ranking.rows]
        numeric = all(map(is_number, values))
        cells: list[Cell] = [(format_value(v), float(v)) if numeric else format_value(v) for v in values]
        settings.append((ranking.names[key], cells))
    places = ("#", [(str(i), i) if row.score.n else (UNSET, nan) for i, row in enumerate(ranking.rows, 1)])
    scores = list(_score_columns(ranking))
    leading = len(settings) <= MAX_LEADING_SETTINGS
    columns = [places, *settings, *scores] if leading else [places, *scores, *settings]
    return [head for head, _ in columns], [list(row) for row in zip(*(cells for _, cells in columns), strict=True)]


def _score_columns(ranking: Ranking) -> Iterator[Column]:
    rows = ranking.rows
    several = any(len(row.results) > 1 for row in rows)
    if several:
        yield "runs", [(str(len(row.results)), len(row.results)) for row in rows]
    for metric in map(Metric, _shown_metrics(ranking)):
        summaries = [summarise_metric(row.results, metric.key) for row in rows]
        yield metric.label, [(metric.mean(s) or UNSET, s.mean) for s in summaries]
        if several and metric.key == ranking.metric:
            yield "95% CI", [(metric.interval(s) or UNSET, s.low) for s in summaries]
    tags = [sorted({tag for run in row.results for tag in run.tags}) for row in rows]
    if any(tags):
        yield "tags", [", ".join(of_row) for of_row in tags]
    yield "time per run", [(format_duration(row.seconds), row.seconds) for row in rows]
    if several:
        yield "compared with the best", [row.verdict for row in rows]


def _shown_metrics(ranking: Ranking) -> list[str]:
    """Return the metric that ranks the rows, validation and test accuracy, and the test's value of that metric."""
    tested = "test/" + ranking.metric.removeprefix("val/")
    shown = [ranking.metric, "val/acc", Metric(ranking.metric).test_key]
    if metric_name(tested) != "loss" and any(tested in run.metrics for row in ranking.rows for run in row.results):
        shown.append(tested)
    return list(dict.fromkeys(shown))


def further_tables(ranking: Ranking) -> dict[str, Table]:
    """Return the tables below the ranking, under their headings."""
    tables: dict[str, Table] = {}
    if ranking.importance:
        largest_first = sorted(ranking.importance.items(), key=lambda item: -item[1])
        fractions: list[list[Cell]] = [[key, (f"{fraction:.0%}", fraction)] for key, fraction in largest_first]
        tables["Importance of parameters"] = ["parameter", "importance"], fractions
    if ranking.unfinished:
        everything = [*ranking.unfinished, *(run for row in ranking.rows for run in row.results)]
        shared = set.intersection(*(set(run.overrides) for run in everything))
        runs: list[list[Cell]] = []
        for run in ranking.unfinished:
            own = " ".join(override for override in run.overrides if override not in shared)
            epochs, log = len(run.epochs), shorten(run.log) if run.log else "none"
            runs.append([shorten(run.path), own, run.status, (str(epochs), epochs), run.reason, log])
        tables["Not finished"] = ["run", "settings", "status", "epochs", "reason", "log"], runs
    return tables


def as_markdown(heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    escaped = [[" ".join(text_of(cell).replace("|", "&#124;").split()) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *escaped])


def as_csv(ranking: Ranking) -> str:
    """Return a line per row: accuracies as fractions, times in seconds, settings under their full names."""
    lines = []
    for place, row in enumerate(ranking.rows, 1):
        line: dict[str, Any] = {"place": place if row.score.n else ""}
        line |= {key: format_value(v) if isinstance(v, list | bool) else v for key, v in row.values.items()}
        line |= {"runs": len(row.results), "seeds": " ".join(str(result.seed) for result in row.results)}
        if ranking.unit == "fold":
            line["folds"] = " ".join(str(result.fold) for result in row.results)
        for key in _shown_metrics(ranking):
            s = summarise_metric(row.results, key)
            figures = {"mean": s.mean, "std": s.std, "95 % low": s.low, "95 % high": s.high}
            line |= {f"{key} {figure}": "" if isnan(value) else value for figure, value in figures.items()}
        line |= {"seconds": round(row.seconds, 1), "test": row.comparison.test}
        line |= {"p (Holm)": row.comparison.p if row.comparison.test else "", "verdict": row.verdict}
        line["directories"] = " ".join(shorten(result.path) for result in row.results)
        lines.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
