"""The table of a leaderboard, for terminal, page, Markdown and CSV."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from math import isnan, nan
from typing import Any

from vitlab.files import shorten
from vitlab.leaderboard.ranking import UNSET, Ranking, Row, format_value, is_number, summarise_metric, test_metric
from vitlab.leaderboard.statistics import Summary

Cell = str | tuple[str, float]  # a text, or a text with the number to sort it by
Column = tuple[str, Sequence[Cell]]
MAX_LEADING_SETTINGS = 5  # more settings follow after the scores
SPLITS = {"val": "validation", "test": "test", "train": "training"}
NO_SUMMARY = Summary(0, nan, nan, nan, nan)


def metric_label(metric: str) -> str:
    """Return the name of a metric with its unit: "validation accuracy, %" for `val/acc`."""
    split, kind = metric.removesuffix("_ema").split("/")
    name, unit = ("accuracy", "%") if kind == "acc" else ("loss", "nats")
    return f"{SPLITS[split]} {name}{' of the EMA weights' if metric.endswith('_ema') else ''}, {unit}"


def metric_name(metric: str) -> str:
    """Return the name of a metric without its unit."""
    return metric_label(metric).split(", ")[0]


def metric_factor(metric: str) -> int:
    """Return the factor from the stored value of a metric to its unit."""
    return 100 if "/acc" in metric else 1


def format_number(metric: str, value: float) -> str:
    """Format the value of a metric without its unit; empty for NaN."""
    if isnan(value):
        return ""
    return f"{100 * value:.2f}" if "/acc" in metric else f"{value:.4f}"


def format_amount(metric: str, value: float) -> str:
    """Format the value of a metric with its unit."""
    return f"{format_number(metric, value)} {metric_label(metric).split(', ')[1]}"


def format_spread(metric: str, summary: Summary) -> str:
    """Format mean and standard deviation; empty without values."""
    return format_number(metric, summary.mean) + (f" ± {format_number(metric, summary.std)}" if summary.n > 1 else "")


def format_interval(metric: str, summary: Summary) -> str:
    """Format the 95 % interval; empty without values."""
    if summary.n < 2:
        return "one seed: none" if summary.n else ""
    return f"{format_number(metric, summary.low)} to {format_number(metric, summary.high)}"


def format_duration(seconds: float) -> str:
    """Format seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def row_label(row: Row, ranking: Ranking) -> str:
    """Name a row by the settings that vary, or by the name of its run if none does."""
    parts = [f"{name} {format_value(row.values[key])}" for key, name in ranking.names.items()]
    return ", ".join(parts) or str(row.results[0].settings.get("name"))


def make_table(ranking: Ranking, max_settings: int | None = None) -> tuple[list[str], list[list[Cell]]]:
    """Return column heads and rows, with at most `max_settings` of the settings that vary."""
    settings = [_setting_column(ranking, key) for key in list(ranking.names)[:max_settings]]
    places = ("#", [(str(i), i) if row.score else (UNSET, nan) for i, row in enumerate(ranking.rows, 1)])
    scores = list(_score_columns(ranking))
    leading = len(settings) <= MAX_LEADING_SETTINGS
    columns = [places, *settings, *scores] if leading else [places, *scores, *settings]
    return [head for head, _ in columns], [list(row) for row in zip(*(cells for _, cells in columns), strict=True)]


def _setting_column(ranking: Ranking, key: str) -> Column:
    values = [row.values[key] for row in ranking.rows]
    numeric = all(map(is_number, values))
    return ranking.names[key], [(format_value(v), float(v)) if numeric else format_value(v) for v in values]


def _score_columns(ranking: Ranking) -> Iterator[Column]:
    metric, rows = ranking.metric, ranking.rows
    several = any(len(row.results) > 1 for row in rows)
    if several:
        yield "runs", [(str(len(row.results)), len(row.results)) for row in rows]
    for name in _shown_metrics(metric):
        summaries = [summarise_metric(row.results, name) or NO_SUMMARY for row in rows]
        yield metric_label(name), [(format_spread(name, s) or UNSET, s.mean) for s in summaries]
        if several and name == metric:
            yield "95 % interval", [(format_interval(metric, s) or UNSET, s.low) for s in summaries]
    yield "time per run", [(format_duration(row.seconds), row.seconds) for row in rows]
    if several:
        yield "compared with the best", [row.verdict for row in rows]


def _shown_metrics(metric: str) -> list[str]:
    """Return the metric that ranks the rows, and the validation and test accuracy."""
    return list(dict.fromkeys([metric, "val/acc", test_metric(metric)]))


def as_markdown(heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    texts = [[cell if isinstance(cell, str) else cell[0] for cell in row] for row in rows]
    escaped = [[" ".join(text.replace("|", "&#124;").split()) for text in row] for row in texts]
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *escaped])


def as_csv(ranking: Ranking) -> str:
    """Return a line per row: accuracies as fractions, times in seconds, settings under their full names."""
    text = io.StringIO()
    lines = [_csv_line(place, row, ranking.metric) for place, row in enumerate(ranking.rows, 1)]
    writer = csv.DictWriter(text, list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _csv_line(place: int, row: Row, metric: str) -> dict[str, Any]:
    return {
        "place": place if row.score else "",
        **{key: format_value(value) if isinstance(value, list | bool) else value for key, value in row.values.items()},
        "runs": len(row.results),
        "seeds": " ".join(str(result.seed) for result in row.results),
        **{key: value for name in _shown_metrics(metric) for key, value in _csv_scores(name, row).items()},
        "seconds": round(row.seconds, 1),
        "test": row.comparison.test if row.comparison else "",
        "p (Holm)": _empty_if_nan(row.comparison.p) if row.comparison else "",
        "verdict": row.verdict,
        "directories": " ".join(shorten(result.path) for result in row.results),
    }


def _csv_scores(metric: str, row: Row) -> Mapping[str, Any]:
    s = summarise_metric(row.results, metric) or NO_SUMMARY
    values = {"mean": s.mean, "std": s.std, "95 % low": s.low, "95 % high": s.high}
    return {f"{metric} {name}": _empty_if_nan(value) for name, value in values.items()}


def _empty_if_nan(value: float) -> float | str:
    return "" if isnan(value) else value
