"""Figures of a leaderboard with captions: scores, time, learning curves, settings."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product
from math import ceil
from statistics import fmean, median
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from vitlab.leaderboard.ranking import Ranking, Row, format_value, is_number, value_of
from vitlab.leaderboard.table import Metric, row_label
from vitlab.plots.io import COLORS

LINE_COLORS = [COLORS[name] for name in ("blue", "vermilion", "green", "purple", "sky", "orange")]
LINE_STYLES: list[tuple[Any, Any]] = [(color, dash) for dash, color in product(("solid", (0, (4, 2))), LINE_COLORS)]
# Dark is best: the light end is hard to see on white.
QUALITY: Colormap = ListedColormap(colormaps["viridis"](np.linspace(0.88, 0, 256)))
UNFINISHED: dict[str, Any] = {"color": "0.6", "linestyle": (0, (1, 1.5)), "linewidth": 1.0, "zorder": 1}
LENGTH_SETTINGS = ("trainer.max_time", "trainer.max_epochs", "trainer.max_steps")  # how long a run trains
MAX_ROWS = 30  # in the figure of scores
MAX_NAME = 70  # characters of a row's name in a legend
MAX_SETTINGS = 12  # in a figure
MAX_TICKS = 8  # up to so many different values of a setting each get a tick
TICK_ROOM = 0.07  # between two tick labels, as a fraction of the axis
CHARACTER = 0.03  # width of a character, as a fraction of a panel
DPI = 120

Epochs = Sequence[Mapping[str, float]]  # the rows of a run's metrics.csv


def _row_names(ranking: Ranking) -> list[str]:
    """Return each row's place, and its label unless that is long."""
    labels = [row_label(row, ranking) for row in ranking.rows]
    return [f"#{place}  {label}" if len(label) <= MAX_NAME else f"#{place}" for place, label in enumerate(labels, 1)]


def _scores(rows: Sequence[Row], metric: Metric) -> list[float]:
    """Return the score of each run in the unit of the axis."""
    return [metric.factor * result.metrics[metric.key] for row in rows for result in row.results]


def _values(ranking: Ranking, key: str) -> list[float | str]:
    """Return a setting of each run that has a score, in the order of the rows."""
    values = [value_of(result, key) for row in ranking.ranked for result in row.results]
    return [value if is_number(value) else format_value(value) for value in values]


def draw_scores(ranking: Ranking) -> tuple[Figure, str]:
    """A line for each row: the score of each run, their mean and its 95% confidence interval, clipped if it is wider
    than the figure."""
    rows, metric = ranking.ranked[:MAX_ROWS], Metric(ranking.metric)
    figure = Figure(figsize=(10, 0.9 + 0.3 * len(rows)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot(xlabel=metric.label)
    ends = []
    for place, row in enumerate(rows):
        color, _ = _line_style(place, len(ranking.rows))
        scores = _scores([row], metric)
        axes.plot(scores, [place] * len(scores), "o", color=color, alpha=0.55, markersize=6, markeredgewidth=0)
        if row.score.n > 1:
            interval = [metric.factor * row.score.low, metric.factor * row.score.high]
            axes.plot(interval, [place, place], color=color, linewidth=1.3)
            axes.plot([fmean(scores)], [place], "|", color=color, markersize=14, markeredgewidth=2.5)
            ends += interval
    low, high = min(_scores(rows, metric)), max(_scores(rows, metric))
    room = (high - low) or 0.01 * abs(high) or 1
    axes.set_xlim(max(low - room, min([low - 0.1 * room, *ends])), min(high + room, max([high + 0.1 * room, *ends])))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), _row_names(ranking)[: len(rows)], fontsize=9, parse_math=False)
    axes.grid(axis="x", alpha=0.3)
    caption = "Each point is a run, the vertical mark the mean of a row, the line its 95% confidence interval, clipped"
    left_out = f" Rows after the first {MAX_ROWS} are left out." if len(ranking.ranked) > MAX_ROWS else ""
    return figure, f"{caption} at the frame.{left_out}"


def draw_times(ranking: Ranking) -> tuple[Figure, str]:
    """A point for each row: its score by the minutes that a run takes, with the standard deviation over its runs.

    A line joins rows that differ only in how long they train.
    """
    metric = Metric(ranking.metric)
    automatic = frozenset.intersection(*(run.automatic for row in ranking.ranked for run in row.results))
    left_out = {*LENGTH_SETTINGS, *(automatic & {"compile"})}  # which follows from how long a run trains
    others = [(key, name) for key, name in ranking.names.items() if key not in left_out]
    lines: dict[str, list[Row]] = defaultdict(list)
    for row in ranking.ranked:
        lines[", ".join(f"{name} {format_value(row.values[key])}" for key, name in others)].append(row)
    few = len(lines) <= len(LINE_STYLES)
    figure = Figure(figsize=(8, 4.6), dpi=DPI, layout="constrained")
    axes = figure.add_subplot(xlabel="minutes", ylabel=metric.label)
    for place, (name, rows) in enumerate(lines.items()):
        color, dash = _line_style(place, len(lines))
        rows = sorted(rows, key=lambda row: row.seconds)
        minutes, means = [row.seconds / 60 for row in rows], [metric.factor * row.score.mean for row in rows]
        errors = [metric.factor * row.score.std if row.score.n > 1 else 0.0 for row in rows]
        label = (name if len(name) <= MAX_NAME else f"#{ranking.ranked.index(rows[0]) + 1}") if few else None
        axes.errorbar(minutes, means, errors, color=color, linestyle=dash, marker="o", capsize=4, label=label)
    durations = [row.seconds for row in ranking.ranked]
    if max(durations) >= 10 * min(durations) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    if not few:
        _draw_ranks(figure, axes, len(lines))
    handles, names = axes.get_legend_handles_labels()
    if any(names):
        _show_as_written(axes.legend(handles, names, fontsize=9, frameon=False))
    several = any(row.score.n > 1 for row in ranking.ranked)
    bars = "; the bars are the standard deviation over its runs" if several else ""
    joined = " Lines join rows that differ only in how long they train." if len(lines) < len(durations) else ""
    return figure, f"Each point is a row: its score by the duration of a run, from start to end{bars}.{joined}"


def draw_curves_of_runs(ranking: Ranking) -> tuple[Figure, str]:
    """Validation accuracy and training loss of all runs by epoch, coloured by row; thick lines are means of rows."""
    rows = [[result.epochs for result in row.results] for row in ranking.rows]
    few, several = len(rows) <= len(LINE_STYLES), any(len(runs) > 1 for runs in rows)
    row_names = _row_names(ranking)
    figure = Figure(figsize=(11, 4.4), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 2)
    metrics = (("val/acc", 100, "validation accuracy, %"), ("train/loss", 1, "training loss, nats"))
    for axes, (metric, factor, label) in zip(panels, metrics, strict=True):
        for place, runs in enumerate(rows):
            color, dash = _line_style(place, len(rows))
            look = {"color": color, "linestyle": dash, "zorder": 3 - place / len(rows)}  # the best one on top
            for epochs in runs if len(runs) > 1 else []:
                _draw_mean(axes, [epochs], metric, factor, linewidth=0.8, alpha=0.45, **look)
            name = row_names[place] if few else None
            _draw_mean(axes, runs, metric, factor, linewidth=2 if few else 1.2, label=name, **look)
        for number, epochs in enumerate(result.epochs for result in ranking.unfinished if result.epochs):
            _draw_mean(axes, [epochs], metric, factor, label=None if number else "not finished", **UNFINISHED)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    if not few:
        _draw_ranks(figure, panels, len(rows))
    handles, names = panels[0].get_legend_handles_labels()
    if names:
        columns = max(1, min(len(names), 150 // (max(map(len, names)) + 8)))
        look = {"fontsize": 9, "frameon": False, "handlelength": 3}
        _show_as_written(figure.legend(handles, names, loc="outside lower center", ncols=columns, **look))
    return figure, "Thin: each run. Thick: the mean of a row's runs." if several else "Each line is a run."


def _show_as_written(legend: Legend) -> None:
    """Take `$` in the texts for itself, not for the mark of a formula."""
    for text in legend.get_texts():
        text.set_parse_math(False)


def _draw_ranks(figure: Figure, axes: Any, count: int) -> None:
    """Draw the colours of `count` ranks beside the axes."""
    bar = figure.colorbar(ScalarMappable(Normalize(1, count), QUALITY.reversed()), ax=axes, label="rank")
    bar.ax.invert_yaxis()


def _draw_mean(axes: Axes, runs: Sequence[Epochs], metric: str, factor: float, **look: Any) -> None:
    """Draw the mean of runs over the epochs that all of them have."""
    values = [{row["epoch"]: row[metric] for row in epochs if metric in row} for epochs in runs]
    common = sorted(set.intersection(*map(set, values)))
    means = [factor * fmean(value[epoch] for value in values) for epoch in common]
    axes.plot(common, means, marker="o" if len(common) < 4 else "", markersize=3.5, **look)


def _line_style(place: int, count: int) -> tuple[Any, Any]:
    return LINE_STYLES[place] if count <= len(LINE_STYLES) else (QUALITY(1 - place / (count - 1)), "solid")


class Scale:
    """Map the values of a setting to positions between 0 and 1; `ticks` are labels and positions.

    Numbers are placed by their size, or by its logarithm if they span a decade or more and fill that more evenly;
    strings at equal distances. Up to `max_ticks` different values each get a tick; more get round numbers.
    """

    def __init__(self, values: Sequence[float | str], max_ticks: int = MAX_TICKS) -> None:
        distinct: list[Any] = list({format_value(value): value for value in values}.values())
        distinct.sort(key=lambda value: (isinstance(value, str), value))  # numbers before strings
        numbers = [value for value in distinct if not isinstance(value, str)]
        positive = [value for value in numbers if value > 0]
        decades = bool(positive) and _are_spread_over_decades(positive)
        self.few = len(distinct) <= max_ticks
        self.log = decades and len(positive) == len(distinct)
        zero_beside_decades = decades and not self.log and self.few
        self.numeric = len(numbers) == len(distinct) and not zero_beside_decades
        self._names = [format_value(value) for value in distinct]
        if self.numeric:
            self._norm = LogNorm(distinct[0], distinct[-1]) if self.log else Normalize(distinct[0], distinct[-1])
        ticks = distinct if self.few or not self.numeric else self._round_numbers(numbers)
        self.ticks = [(format_value(value), self(value)) for value in ticks]

    def __call__(self, value: Any) -> float:
        if not self.numeric:
            return (self._names.index(format_value(value)) + 0.5) / len(self._names)
        return 0.5 if self._norm.vmin == self._norm.vmax else float(self._norm(value))

    def title(self, name: str) -> str:
        return f"{name} (log)" if self.log else name

    def _round_numbers(self, distinct: Sequence[float]) -> list[float]:
        low, high = distinct[0], distinct[-1]
        whole = all(isinstance(value, int) for value in distinct)
        locator = LogLocator(subs=(1, 3) if high < 1000 * low else (1,)) if self.log else MaxNLocator(4, integer=whole)
        return [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high] or [low]


def _are_spread_over_decades(distinct: Sequence[float]) -> bool:
    low, middle, high = distinct[0], median(distinct), distinct[-1]
    if high < 10 * low or len(distinct) < 3:
        return high >= 10 * low
    return abs(LogNorm(low, high)(middle) - 0.5) <= abs(Normalize(low, high)(middle) - 0.5)


def draw_effects(ranking: Ranking) -> tuple[Figure, str]:
    """A panel for each setting: each run's score by its value; a line joins the means of the runs with one value."""
    metric, settings = Metric(ranking.metric), list(ranking.names)[:MAX_SETTINGS]
    columns = min(3, len(settings))
    rows = ceil(len(settings) / columns)
    figure = Figure(figsize=(max(5.2, 3.7 * columns), max(3.6, 3 * rows)), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in panels.flat[len(settings) :]:
        axes.set_axis_off()
    for axes, key in zip(panels.flat, settings, strict=False):
        _draw_effect(axes, key, _values(ranking, key), _scores(ranking.ranked, metric))
    for line in panels:
        line[0].set_ylabel(metric.label)
    more = ", ".join(list(ranking.names)[MAX_SETTINGS:])
    left_out = f" Left out: {more}." if more else ""
    return figure, f"Each point is a run; orange marks the mean of the runs with one value.{left_out}"


def _draw_effect(axes: Axes, key: str, values: Sequence[float | str], scores: Sequence[float]) -> None:
    scale = Scale(values)
    look: dict[str, Any] = {"color": LINE_COLORS[0], "alpha": 0.5, "markersize": 6, "markeredgewidth": 0}
    axes.plot([scale(value) for value in values], scores, "o", **look)
    by_value: dict[str, list[float]] = defaultdict(list)
    for value, score in zip(values, scores, strict=True):
        by_value[format_value(value)].append(score)
    if scale.few and max(map(len, by_value.values())) > 1:
        places, means = [place for _, place in scale.ticks], [fmean(by_value[name]) for name, _ in scale.ticks]
        line: dict[str, Any] = {"linestyle": "-" if scale.numeric else "", "color": LINE_COLORS[1]}
        axes.plot(places, means, marker="_", markersize=22, markeredgewidth=2, **line)
    ticks = _keep_apart(scale.ticks, CHARACTER) if scale.numeric else scale.ticks
    slanted = not scale.numeric and max(len(name) for name, _ in ticks) * len(ticks) > 30
    turn: dict[str, Any] = {"rotation": 25, "ha": "right"} if slanted else {}
    axes.set_xticks([place for _, place in ticks], [name for name, _ in ticks], parse_math=False, **turn)
    axes.set_xlim(-0.12, 1.12)
    axes.set_xlabel(scale.title(key), parse_math=False)
    axes.grid(alpha=0.3)


def draw_parallel(ranking: Ranking) -> tuple[Figure, str]:
    """Parallel coordinates (Inselberg 1985, The plane with parallel coordinates): a line for each run, from value to
    value to its score; the best run stands out."""
    metric, lowest_is_best = Metric(ranking.metric), ranking.mode == "min"
    names = dict(list(ranking.names.items())[:MAX_SETTINGS])
    settings, scores = [_values(ranking, key) for key in names], _scores(ranking.ranked, metric)
    scales, score_scale = [Scale(values) for values in settings], Scale(scores, max_ticks=0)
    figure = Figure(figsize=(min(12.5, 3 + 2.2 * len(settings)), 4.8), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    best_last = sorted(range(len(scores)), key=lambda run: scores[run], reverse=lowest_is_best)
    # Lines through the same value run side by side there, if there is room.
    lanes = [(0.05 if scale.few else 0.0) if scale.numeric else 0.14 for scale in scales]
    for run in best_last:
        end = score_scale(scores[run])
        heights = [
            scale(values[run]) + lane * (end - 0.5) for scale, values, lane in zip(scales, settings, lanes, strict=True)
        ]
        best, quality = run == best_last[-1], 1 - end if lowest_is_best else end
        color, width = (LINE_COLORS[1], 3.0) if best else (QUALITY(quality), 1.2)
        axes.plot([*heights, end], color=color, linewidth=width, alpha=0.85)
    for place, scale in enumerate([*scales, score_scale]):
        axes.axvline(place, color="0.35", linewidth=1)
        for name, height in _keep_apart(scale.ticks):
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
            axes.text(place + 0.02, height, name, fontsize=9, va="center", bbox=box, zorder=5, parse_math=False)
    titles = [scale.title(name) for name, scale in zip(names.values(), scales, strict=True)]
    axes.set_xticks(range(len(settings) + 1), [*titles, metric.label.replace(" ", "\n", 1)], parse_math=False)
    axes.set(xlim=(-0.05, len(settings) + 0.3), ylim=(-0.06, 1.06), yticks=[])
    axes.tick_params(axis="x", length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    caption = f"Each line is a run, from its settings to its {metric.name}; orange is the best run, dark is good."
    return figure, caption


def _keep_apart(ticks: list[tuple[str, float]], character: float = 0.0) -> list[tuple[str, float]]:
    """Leave out ticks that would overlap; `character` is a character's width, if the labels are next to each other."""
    kept: list[tuple[str, float]] = []
    for name, place in ticks:
        if not kept or place - kept[-1][1] >= max(TICK_ROOM, character * (len(name) + len(kept[-1][0]) + 2) / 2):
            kept.append((name, place))
    return kept
