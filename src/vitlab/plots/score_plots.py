"""Scores and learning curves of a leaderboard's runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from vitlab.plots.style import COLORS

LINE_COLORS = [COLORS[name] for name in ("blue", "vermilion", "green", "purple", "sky", "orange")]
LINE_STYLES: list[tuple[Any, Any]] = [(color, dash) for dash, color in product(("solid", (0, (4, 2))), LINE_COLORS)]
# Dark is best: the light end is hard to see on white.
QUALITY: Colormap = ListedColormap(colormaps["viridis"](np.linspace(0.88, 0, 256)))
UNFINISHED: dict[str, Any] = {"color": "0.6", "linestyle": (0, (1, 1.5)), "linewidth": 1.0}
MAX_ROWS = 30  # in the figure of scores
DPI = 120

Epochs = Sequence[Mapping[str, float]]  # the rows of a run's metrics.csv


@dataclass(frozen=True)
class RankedRow:
    """Runs that differ only in their seed."""

    name: str
    scores: Sequence[float]  # of each run, in the unit of the axis; none if the runs were not validated
    interval: tuple[float, float] | None  # 95 % confidence interval of the mean score; None for a single run
    epochs: Sequence[Epochs]  # of each run


@dataclass(frozen=True)
class Setting:
    """A setting that differs between runs."""

    key: str  # path in the config
    name: str  # short
    values: Sequence[float | str]  # of each run that has a score, in the order of the rows


@dataclass(frozen=True)
class RankedRuns:
    """What the figures of a leaderboard show."""

    score: str  # what it is, with its unit, as "validation accuracy, %"
    lowest_is_best: bool
    rows: Sequence[RankedRow]  # best first, rows without a score last
    settings: Sequence[Setting]  # those that differ between runs
    unfinished: Sequence[Epochs]  # of the runs that did not finish

    @property
    def scores(self) -> list[float]:
        return [score for row in self.rows for score in row.scores]


def draw_scores(runs: RankedRuns) -> Figure:
    """A line for each row: the score of each run, their mean and its 95 % confidence interval, clipped if it is wider
    than the figure."""
    rows = [row for row in runs.rows if row.scores][:MAX_ROWS]
    figure = Figure(figsize=(10, 0.9 + 0.3 * len(rows)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot(xlabel=runs.score)
    for place, row in enumerate(rows):
        color, _ = _line_style(place, len(runs.rows))
        axes.plot(row.scores, [place] * len(row.scores), "o", color=color, alpha=0.55, markersize=6, markeredgewidth=0)
        if row.interval:
            axes.plot(row.interval, [place, place], color=color, linewidth=1.3)
            axes.plot([fmean(row.scores)], [place], "|", color=color, markersize=14, markeredgewidth=2.5)
    low, high = min(min(row.scores) for row in rows), max(max(row.scores) for row in rows)
    room = (high - low) or 0.01 * abs(high) or 1
    ends = [end for row in rows for end in row.interval or ()]
    axes.set_xlim(max(low - room, min([low - 0.1 * room, *ends])), min(high + room, max([high + 0.1 * room, *ends])))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=9, parse_math=False)
    axes.grid(axis="x", alpha=0.3)
    return figure


def caption_scores(runs: RankedRuns) -> str:
    more = sum(bool(row.scores) for row in runs.rows) - MAX_ROWS
    left_out = f" The last {more} rows are left out." if more > 1 else " The last row is left out." if more == 1 else ""
    return (
        "Each point is a run, the vertical mark the mean of a row, the line its 95 % confidence interval, clipped at "
        f"the frame.{left_out}"
    )


def draw_curves_of_runs(runs: RankedRuns) -> Figure:
    """Validation accuracy and training loss of all runs by epoch, coloured by row; thick lines are means of rows."""
    rows = runs.rows
    few = len(rows) <= len(LINE_STYLES)
    figure = Figure(figsize=(11, 4.4), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 2)
    metrics = (("val/acc", 100, "validation accuracy, %"), ("train/loss", 1, "training loss, nats"))
    for axes, (metric, factor, label) in zip(panels, metrics, strict=True):
        for epochs in runs.unfinished:
            _draw_mean(axes, [epochs], metric, factor, UNFINISHED)
        for place, row in reversed(list(enumerate(rows))):  # the best one on top
            color, dash = _line_style(place, len(rows))
            look = {"color": color, "linestyle": dash}
            for epochs in row.epochs if len(row.epochs) > 1 else []:
                _draw_mean(axes, [epochs], metric, factor, {**look, "linewidth": 0.8, "alpha": 0.45})
            _draw_mean(axes, row.epochs, metric, factor, {**look, "linewidth": 2 if few else 1.2})
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    legend: list[tuple[str, dict[str, Any]]] = []
    if few:
        styles = zip(rows, LINE_STYLES, strict=False)
        legend = [(row.name, {"color": color, "linestyle": dash}) for row, (color, dash) in styles]
    else:
        bar = figure.colorbar(ScalarMappable(Normalize(1, len(rows)), QUALITY.reversed()), ax=panels, label="rank")
        bar.ax.invert_yaxis()
    if any(runs.unfinished):
        legend.append(("not finished", UNFINISHED))
    if legend:
        names = [name for name, _ in legend]
        columns = max(1, min(len(names), 150 // (max(map(len, names)) + 8)))
        handles = [Line2D([], [], **{"linewidth": 2, **look}) for _, look in legend]
        figure.legend(
            handles, names, loc="outside lower center", ncols=columns, fontsize=9, frameon=False, handlelength=3
        )
    return figure


def caption_curves_of_runs(runs: RankedRuns) -> str:
    several = any(len(row.epochs) > 1 for row in runs.rows)
    return "Thin: each run. Thick: the mean of a row's runs." if several else "Each line is a run."


def _draw_mean(axes: Axes, runs: Sequence[Epochs], metric: str, factor: float, look: Mapping[str, Any]) -> None:
    """Draw the mean of runs over the epochs that all of them have."""
    values = [{row["epoch"]: row[metric] for row in epochs if metric in row} for epochs in runs]
    common = sorted(set.intersection(*map(set, values)))
    means = [factor * fmean(value[epoch] for value in values) for epoch in common]
    axes.plot(common, means, marker="o" if len(common) < 4 else "", markersize=3.5, **look)


def _line_style(place: int, count: int) -> tuple[Any, Any]:
    return LINE_STYLES[place] if count <= len(LINE_STYLES) else (QUALITY(1 - place / (count - 1)), "solid")
