"""Effects of the settings that differ between a leaderboard's runs."""

from collections.abc import Sequence
from math import ceil, log10
from statistics import fmean, median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from vitlab.plots.score_plots import DPI, LINE_COLORS, QUALITY, RankedRuns

MAX_SETTINGS = 12  # in a figure
MAX_TICKS = 8  # up to so many different values each get a tick
ROOM = 0.07  # between two tick labels, as a fraction of the axis
CHARACTER = 0.03  # width of a character, as a fraction of a panel


class Scale:
    """Map the values of a setting to positions between 0 and 1; `ticks` are labels and positions.

    Numbers are placed by their size, or by its logarithm if they span a decade or more and fill that more evenly;
    strings at equal distances. Up to `max_ticks` different values each get a tick; more get round numbers.
    """

    def __init__(self, values: Sequence[float | str], max_ticks: int = MAX_TICKS) -> None:
        distinct = sorted({_format(value): value for value in values}.values(), key=_numbers_first)
        numbers = [value for value in distinct if not isinstance(value, str)]
        positive = [value for value in numbers if value > 0]
        decades = bool(positive) and _are_spread_over_decades(positive)
        self.few = len(distinct) <= max_ticks
        self.log = decades and len(positive) == len(distinct)
        zero_beside_decades = decades and not self.log and self.few
        self.numeric = len(numbers) == len(distinct) and not zero_beside_decades
        self._names = [_format(value) for value in distinct]
        self._low, self._high = (self._size(distinct[0]), self._size(distinct[-1])) if self.numeric else (0.0, 0.0)
        ticks = distinct if self.few or not self.numeric else self._round_numbers(numbers)
        self.ticks = [(_format(value), self(value)) for value in ticks]

    def __call__(self, value: Any) -> float:
        if not self.numeric:
            return (self._names.index(_format(value)) + 0.5) / len(self._names)
        if self._low == self._high:
            return 0.5
        return (self._size(value) - self._low) / (self._high - self._low)

    def _size(self, value: Any) -> float:
        return log10(value) if self.log else float(value)

    def _round_numbers(self, distinct: Sequence[float]) -> list[float]:
        low, high = distinct[0], distinct[-1]
        whole = all(isinstance(value, int) for value in distinct)
        locator = LogLocator(subs=(1, 3) if high < 1000 * low else (1,)) if self.log else MaxNLocator(4, integer=whole)
        return [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high] or [low]


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _numbers_first(value: Any) -> tuple[bool, float, str]:
    return (True, 0.0, value) if isinstance(value, str) else (False, float(value), "")


def _are_spread_over_decades(distinct: Sequence[float]) -> bool:
    low, middle, high = distinct[0], median(distinct), distinct[-1]
    if high < 10 * low or len(distinct) < 3:
        return high >= 10 * low
    even = (middle - low) / (high - low)
    return abs(log10(middle / low) / log10(high / low) - 0.5) <= abs(even - 0.5)


def draw_effects(runs: RankedRuns) -> Figure:
    """A panel for each setting: each run's score by its value; a line joins the means of the runs with one value."""
    settings = runs.settings[:MAX_SETTINGS]
    columns = min(3, len(settings))
    rows = ceil(len(settings) / columns)
    figure = Figure(figsize=(3.7 * columns, 3 * rows), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in panels.flat[len(settings) :]:
        axes.set_axis_off()
    for axes, setting in zip(panels.flat, settings, strict=False):
        scale = Scale(setting.values)
        _draw_effect(axes, scale, setting.values, runs.scores)
        axes.set_xlabel(_title(setting.key, scale), parse_math=False)
    for line in panels:
        line[0].set_ylabel(runs.score)
    return figure


def caption_effects(runs: RankedRuns) -> str:
    more = [setting.key for setting in runs.settings[MAX_SETTINGS:]]
    left_out = f" Left out: {', '.join(more)}." if more else ""
    return f"Each point is a run; orange marks the mean of the runs with one value.{left_out}"


def draw_parallel(runs: RankedRuns) -> Figure:
    """Parallel coordinates (Inselberg 1985, The plane with parallel coordinates): a line for each run, from value to
    value to its score; the best run stands out."""
    settings, scores = runs.settings[:MAX_SETTINGS], runs.scores
    scales, score_scale = [Scale(setting.values) for setting in settings], Scale(scores, max_ticks=0)
    figure = Figure(figsize=(min(12.5, 3 + 2.2 * len(settings)), 4.8), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    best_last = sorted(range(len(scores)), key=lambda run: scores[run], reverse=runs.lowest_is_best)
    for run in best_last:
        end = score_scale(scores[run])
        # Lines through the same value run side by side there.
        heights = [
            scale(setting.values[run]) + _lane_width(scale) * (end - 0.5)
            for scale, setting in zip(scales, settings, strict=True)
        ]
        best, quality = run == best_last[-1], 1 - end if runs.lowest_is_best else end
        color, width = (LINE_COLORS[1], 3.0) if best else (QUALITY(quality), 1.2)
        axes.plot([*heights, end], color=color, linewidth=width, alpha=0.85)
    for place, scale in enumerate([*scales, score_scale]):
        axes.axvline(place, color="0.35", linewidth=1)
        for name, height in _keep_apart(scale.ticks):
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
            axes.text(place + 0.02, height, name, fontsize=9, va="center", bbox=box, zorder=5, parse_math=False)
    titles = [_title(setting.name, scale) for setting, scale in zip(settings, scales, strict=True)]
    axes.set_xticks(range(len(settings) + 1), [*titles, runs.score.replace(" ", "\n", 1)], parse_math=False)
    axes.set(xlim=(-0.05, len(settings) + 0.3), ylim=(-0.06, 1.06), yticks=[])
    axes.tick_params(axis="x", length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    return figure


def caption_parallel(runs: RankedRuns) -> str:
    score = runs.score.split(",")[0]
    return f"Each line is a run, from its settings to its {score}; orange is the best run, dark is good."


def _draw_effect(axes: Axes, scale: Scale, values: Sequence[Any], scores: list[float]) -> None:
    look: dict[str, Any] = {"color": LINE_COLORS[0], "alpha": 0.5, "markersize": 6, "markeredgewidth": 0}
    axes.plot([scale(value) for value in values], scores, "o", **look)
    at: dict[str, list[float]] = {}
    for value, score in zip(values, scores, strict=True):
        at.setdefault(_format(value), []).append(score)
    if scale.few and max(map(len, at.values())) > 1:
        means = [fmean(at[name]) for name, _ in scale.ticks]
        line: dict[str, Any] = {"linestyle": "-" if scale.numeric else "", "color": LINE_COLORS[1]}
        places = [place for _, place in scale.ticks]
        axes.plot(places, means, marker="_", markersize=22, markeredgewidth=2, **line)
    ticks = _keep_apart(scale.ticks, CHARACTER) if scale.numeric else scale.ticks
    slanted = not scale.numeric and max(len(name) for name, _ in ticks) * len(ticks) > 30
    turn: dict[str, Any] = {"rotation": 25, "ha": "right"} if slanted else {}
    axes.set_xticks([place for _, place in ticks], [name for name, _ in ticks], parse_math=False, **turn)
    axes.set_xlim(-0.12, 1.12)
    axes.grid(alpha=0.3)


def _title(name: str, scale: Scale) -> str:
    return f"{name} (log)" if scale.log else name


def _lane_width(scale: Scale) -> float:
    """Room for the lines through one value."""
    if not scale.numeric:
        return 0.14
    return 0.05 if scale.few else 0.0


def _keep_apart(ticks: list[tuple[str, float]], character: float = 0.0) -> list[tuple[str, float]]:
    """Leave out ticks that would overlap; `character` is a character's width, if the labels are next to each other."""
    kept: list[tuple[str, float]] = []
    for name, place in ticks:
        if not kept or place - kept[-1][1] >= max(ROOM, character * (len(name) + len(kept[-1][0]) + 2) / 2):
            kept.append((name, place))
    return kept
