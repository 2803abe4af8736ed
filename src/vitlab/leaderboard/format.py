"""What the numbers of a leaderboard are called and how they are written."""

from datetime import timedelta
from math import isnan

from vitlab.leaderboard.ranking import Ranking, Row
from vitlab.leaderboard.statistics import Summary
from vitlab.leaderboard.varied_settings import show

LONGEST = 70  # letters in a figure's legend
SPLITS = {"val": "validation", "test": "test", "train": "training"}


def quantity(metric: str) -> str:
    """A metric with its unit, for heads and axes: "validation accuracy, %" of `val/acc`."""
    split, kind = metric.removesuffix("_ema").split("/")
    what, unit = ("accuracy", "%") if kind == "acc" else ("loss", "nats")
    return f"{SPLITS[split]} {what}{' of the EMA weights' if metric.endswith('_ema') else ''}, {unit}"


def name_of(metric: str) -> str:
    """Without its unit."""
    return quantity(metric).split(",")[0]


def factor(metric: str) -> int:
    """From a metric as it is stored to its unit."""
    return 100 if "/acc" in metric else 1


def number(metric: str, value: float) -> str:
    """Without its unit; nothing for NaN."""
    if isnan(value):
        return ""
    return f"{100 * value:.2f}" if "/acc" in metric else f"{value:.4f}"


def amount(metric: str, value: float) -> str:
    """With its unit."""
    return f"{number(metric, value)} {quantity(metric).split(', ')[1]}"


def spread(metric: str, summary: Summary | None) -> str:
    """Mean and standard deviation."""
    if summary is None:
        return ""
    return number(metric, summary.mean) + (f" ± {number(metric, summary.std)}" if summary.n > 1 else "")


def interval(metric: str, summary: Summary | None) -> str:
    if summary is None or summary.n < 2:
        return ""
    return f"{number(metric, summary.low)} to {number(metric, summary.high)}"


def duration(seconds: float) -> str:
    """h:mm:ss"""
    return str(timedelta(seconds=round(seconds)))


def name(place: int, row: Row, standings: Ranking) -> str:
    """A row's in figures: by its place and, where that is short enough to be read, by its values."""
    values = label(row, standings)
    return f"#{place}  {values}" if len(values) <= LONGEST else f"#{place}"


def label(row: Row, standings: Ranking) -> str:
    """A row by its values of what varies; by its name where nothing does."""
    parts = [f"{name} {show(row.values[key])}" for key, name in standings.names.items()]
    return ", ".join(parts) or str(row.results[0].settings.get("name"))
