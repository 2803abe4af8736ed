"""The curve of a recipe."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from vitlab.leaderboard.results import Result
from vitlab.plots.style import COLORS, styled


def draw(results: Sequence[Result]) -> Figure:
    """Training loss and validation accuracy over the minutes, a thin line a seed."""
    with styled():
        figure = Figure(figsize=(8.0, 3.0))
        loss, accuracy = figure.subplots(1, 2, sharex=True)
        for result in results:
            minutes = [row["seconds"] / 60 for row in result.epochs]
            for axes, metric, factor in ((loss, "train/loss", 1), (accuracy, "val/acc", 100)):
                points = [
                    (minute, factor * row[metric])
                    for minute, row in zip(minutes, result.epochs, strict=True)
                    if metric in row
                ]
                axes.plot(*zip(*points, strict=True), color=COLORS["blue"], linewidth=1.2, marker=".", alpha=0.7)
        loss.set_title("training loss, nats")
        accuracy.set_title("validation accuracy, %")
        for axes in (loss, accuracy):
            axes.set_xlabel(f"minutes ({len(results)} seeds)" if len(results) > 1 else "minutes")
            axes.set_xlim(left=0)
    return figure
