"""Figures of what the settings that vary do to the score."""

from math import ceil
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitlab.leaderboard.format import factor, quantity
from vitlab.leaderboard.ranking import Ranking
from vitlab.leaderboard.varied_settings import show, value_of
from vitlab.plots.axes import Scale
from vitlab.plots.score_plots import BY_PLACE, DPI, HUES

PANELS = 12  # settings in a figure
ROOM = 0.07  # between two names on an axis, as a share of it
LETTER = 0.03  # the width of a letter, as a share of a panel


def draw_effects(standings: Ranking) -> Figure:
    """A panel a setting: each run's score over its value; the line joins the means of the runs with a value."""
    keys = list(standings.names)[:PANELS]
    columns = min(3, len(keys))
    figure = Figure(figsize=(3.7 * columns, 3 * ceil(len(keys) / columns)), dpi=DPI, layout="constrained")
    panels = figure.subplots(ceil(len(keys) / columns), columns, squeeze=False, sharey=True)
    for axes in panels.flat[len(keys) :]:
        axes.set_axis_off()
    runs, scores = _runs(standings)
    for axes, key in zip(panels.flat, keys, strict=False):
        values = [value_of(run, key) for run in runs]
        _effect(axes, Scale(values), values, scores)
        axes.set_xlabel(_title(key, Scale(values)), parse_math=False)
    for line in panels:
        line[0].set_ylabel(quantity(standings.metric))
    return figure


def draw_parallel(standings: Ranking) -> Figure:
    """Parallel coordinates (Inselberg 1985, The plane with parallel coordinates): a line a run, from value to value to
    its score; the best one stands out."""
    keys = list(standings.names)[:PANELS]
    runs, scores = _runs(standings)
    columns = [[value_of(run, key) for run in runs] for key in keys]
    scales, worth = [Scale(values) for values in columns], Scale(scores, few=0)
    figure = Figure(figsize=(min(12.5, 3 + 2.2 * len(keys)), 4.8), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    best_last = sorted(range(len(runs)), key=lambda run: scores[run], reverse=standings.mode == "min")
    for run in best_last:
        end = worth(scores[run])
        quality = 1 - end if standings.mode == "min" else end
        # Lines through the same value run side by side there.
        heights = [scale(v[run]) + _room(scale) * (end - 0.5) for scale, v in zip(scales, columns, strict=True)]
        best = run == best_last[-1]
        colour, width = (HUES[1], 3.0) if best else (BY_PLACE(quality), 1.2)
        axes.plot([*heights, end], color=colour, linewidth=width, alpha=0.85)
    for place, scale in enumerate([*scales, worth]):
        axes.axvline(place, color="0.35", linewidth=1)
        for name, height in _apart(scale.ticks):
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
            axes.text(place + 0.02, height, name, fontsize=9, va="center", bbox=box, zorder=5, parse_math=False)
    titles = [_title(standings.names[key], scale) for key, scale in zip(keys, scales, strict=True)]
    axes.set_xticks(range(len(keys) + 1), [*titles, quantity(standings.metric).replace(" ", "\n", 1)], parse_math=False)
    axes.set_xlim(-0.05, len(keys) + 0.3)
    axes.set_ylim(-0.06, 1.06)
    axes.set_yticks([])
    axes.tick_params(axis="x", length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    return figure


def _effect(axes: Axes, scale: Scale, values: list[Any], scores: list[float]) -> None:
    axes.plot(
        [scale(value) for value in values], scores, "o", color=HUES[0], alpha=0.5, markersize=6, markeredgewidth=0
    )
    at: dict[str, list[float]] = {}
    for value, score in zip(values, scores, strict=True):
        at.setdefault(show(value), []).append(score)
    if scale.few and max(map(len, at.values())) > 1:
        means = [fmean(at[name]) for name, _ in scale.ticks]
        style = "-" if scale.numeric else ""
        places = [place for _, place in scale.ticks]
        axes.plot(places, means, marker="_", markersize=22, markeredgewidth=2, color=HUES[1], linestyle=style)
    ticks = _apart(scale.ticks, LETTER) if scale.numeric else scale.ticks
    slanted = not scale.numeric and max(len(name) for name, _ in ticks) * len(ticks) > 30
    turn: dict[str, Any] = {"rotation": 25, "ha": "right"} if slanted else {}
    axes.set_xticks([place for _, place in ticks], [name for name, _ in ticks], parse_math=False, **turn)
    axes.set_xlim(-0.12, 1.12)
    axes.grid(alpha=0.3)


def _runs(standings: Ranking) -> tuple[list[Any], list[float]]:
    runs = [result for row in standings.ranked for result in row.results]
    return runs, [factor(standings.metric) * run.metrics[standings.metric] for run in runs]


def _title(name: str, scale: Scale) -> str:
    return f"{name} (log)" if scale.log else name


def _room(scale: Scale) -> float:
    """For lines through the same value."""
    if not scale.numeric:
        return 0.14
    return 0.05 if scale.few else 0.0


def _apart(ticks: list[tuple[str, float]], letter: float = 0.0) -> list[tuple[str, float]]:
    """Those that leave each other room; `letter` is a letter's, where names stand beside each other."""
    kept: list[tuple[str, float]] = []
    for name, place in ticks:
        if not kept or place - kept[-1][1] >= max(ROOM, letter * (len(name) + len(kept[-1][0]) + 2) / 2):
            kept.append((name, place))
    return kept
