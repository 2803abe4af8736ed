"""Epoch by epoch: loss, accuracy, learning rate."""

from collections.abc import Mapping, Sequence
from math import log
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from vitlab.plots.style import COLORS

LINES = {
    "train": ("train/{}", COLORS["orange"]),
    "val": ("val/{}", COLORS["blue"]),
    "val, ema weights": ("val/{}_ema", COLORS["green"]),
}


def draw_curves(
    rows: Sequence[Mapping[str, float]], passed: Sequence[float], best: float | None, classes: int
) -> Figure:
    """Training and validation over the epochs, and what guessing comes to.

    Args:
        rows: Of `metrics.csv`.
        passed: Epochs of training at each row's end.
        best: Those after which the weights were kept.
        classes: Of the images, how many.
    """
    figure = Figure(figsize=(9, 3.4))
    panels: Any = figure.subplots(1, 3, width_ratios=(3, 3, 2))
    guessing = {"loss": log(classes), "acc": 1 / classes}
    for axes, metric, unit in ((panels[0], "loss", "loss (nats)"), (panels[1], "acc", "accuracy")):
        for label, (pattern, color) in LINES.items():
            name = pattern.format(metric)
            points = [(place, row[name]) for place, row in zip(passed, rows, strict=True) if name in row]
            if points:
                axes.plot(*zip(*points, strict=True), "o-", color=color, markersize=3, label=label)
        if best is not None:
            axes.axvline(best, color="0.4", linestyle=":", label="kept")
        axes.set_ylabel(unit)
        low, high = axes.get_ylim()
        if low - (high - low) < guessing[metric] < high + (high - low):  # else it would press the curves flat
            axes.axhline(guessing[metric], color="0.4", linestyle="--", label="guessing")
    panels[1].yaxis.set_major_formatter(PercentFormatter(1))
    panels[2].plot(passed, [row.get("lr") for row in rows], "o-", color="0.3", markersize=3)
    panels[2].set_ylabel("learning rate")
    panels[2].yaxis.set_major_formatter(lambda rate, _: f"{rate:.3g}")
    for axes in panels:
        axes.set_xlabel("epoch")
        axes.set_xlim(0, 1.05 * passed[-1])
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9)
    return figure
