"""Figures of a leaderboard's rows. Colours can be told apart by colour-blind eyes, lines also by their kind."""

from collections.abc import Mapping, Sequence
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

from vitlab.leaderboard.format import factor, name, quantity
from vitlab.leaderboard.ranking import Ranking

# Okabe and Ito, Color universal design (2008), without black and yellow.
HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
STYLES: list[tuple[Any, Any]] = [(hue, dash) for dash, hue in product(("solid", (0, (4, 2))), HUES)]
# Dark is best: the light end is hard to see on white.
BY_PLACE: Colormap = ListedColormap(colormaps["viridis"](np.linspace(0.88, 0, 256)))
UNFINISHED: dict[str, Any] = {"color": "0.6", "linestyle": (0, (1, 1.5)), "linewidth": 1.0}
SHOWN = 30  # rows in the figure of scores
DPI = 120


def draw_scores(standings: Ranking) -> Figure:
    """A line a row: each run's score, their mean and its 95 % interval, cut off where it is wider than the figure."""
    metric, rows = standings.metric, standings.ranked[:SHOWN]
    figure = Figure(figsize=(10, 0.9 + 0.3 * len(rows)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    scores = [[factor(metric) * result.metrics[metric] for result in row.results] for row in rows]
    for place, (row, points) in enumerate(zip(rows, scores, strict=True)):
        colour, _ = _style(place, len(standings.rows))
        axes.plot(points, [place] * len(points), "o", color=colour, alpha=0.55, markersize=6, markeredgewidth=0)
        if row.score and row.score.n > 1:
            interval = [factor(metric) * row.score.low, factor(metric) * row.score.high]
            axes.plot(interval, [place, place], color=colour, linewidth=1.3)
            axes.plot([fmean(points)], [place], "|", color=colour, markersize=14, markeredgewidth=2.5)
    low, high = min(map(min, scores)), max(map(max, scores))
    room = (high - low) or 0.01 * abs(high) or 1
    ends = [factor(metric) * end for row in rows if row.score for end in (row.score.low, row.score.high) if end == end]
    axes.set_xlim(max(low - room, min([low - 0.1 * room, *ends])), min(high + room, max([high + 0.1 * room, *ends])))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    names = [name(place, row, standings) for place, row in enumerate(rows, 1)]
    axes.set_yticks(range(len(rows)), names, fontsize=9, parse_math=False)
    axes.set_xlabel(quantity(metric))
    axes.grid(axis="x", alpha=0.3)
    return figure


def draw_curves(standings: Ranking) -> Figure:
    """Validation accuracy and training loss of all runs over epochs, coloured by row; a row's mean is thick."""
    rows = standings.rows
    few = len(rows) <= len(STYLES)
    figure = Figure(figsize=(11, 4.4), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, metric in zip(panels, ("val/acc", "train/loss"), strict=True):
        for result in standings.unfinished:
            _curve(axes, [result.epochs], metric, UNFINISHED)
        for place in reversed(range(len(rows))):  # the best one on top
            colour, dash = _style(place, len(rows))
            runs = [result.epochs for result in rows[place].results]
            look = {"color": colour, "linestyle": dash}
            for epochs in runs if len(runs) > 1 else []:
                _curve(axes, [epochs], metric, {**look, "linewidth": 0.8, "alpha": 0.45})
            _curve(axes, runs, metric, {**look, "linewidth": 2 if few else 1.2})
        axes.set_xlabel("epoch")
        axes.set_ylabel(quantity(metric))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    keys = [{"color": colour, "linestyle": dash} for colour, dash in STYLES[: len(rows)]]
    names = [name(place, row, standings) for place, row in enumerate(rows, 1)]
    if not few:
        bar = figure.colorbar(ScalarMappable(Normalize(1, len(rows)), BY_PLACE.reversed()), ax=panels, label="place")
        bar.ax.invert_yaxis()
        keys, names = [], []
    if any(result.epochs for result in standings.unfinished):
        keys, names = [*keys, UNFINISHED], [*names, "not finished"]
    if keys:
        handles = [Line2D([], [], **{"linewidth": 2, **key}) for key in keys]
        figure.legend(
            handles, names, loc="outside lower center", ncols=_columns(names), fontsize=9, frameon=False, handlelength=3
        )
    return figure


def _columns(names: Sequence[str]) -> int:
    """Columns of a legend below a figure, by the length of its names."""
    return max(1, min(len(names), 150 // (max(map(len, names)) + 8)))


def _curve(axes: Axes, runs: Sequence[Sequence[Mapping[str, float]]], metric: str, look: Mapping[str, Any]) -> None:
    """The mean of runs over the epochs that all of them have."""
    values = [{row["epoch"]: row[metric] for row in epochs if metric in row} for epochs in runs]
    common = sorted(set.intersection(*map(set, values)))
    means = [factor(metric) * fmean(value[epoch] for value in values) for epoch in common]
    axes.plot(common, means, marker="o" if len(common) < 4 else "", markersize=3.5, **look)


def _style(place: int, count: int) -> tuple[Any, Any]:
    return STYLES[place] if count <= len(STYLES) else (BY_PLACE(1 - place / (count - 1)), "solid")
