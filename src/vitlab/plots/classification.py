"""How well classes are told apart, and how far the probabilities can be trusted."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from vitlab.plots.grid import fit_name
from vitlab.plots.predictions import BINS, Outcome
from vitlab.plots.style import COLORS

LETTERS = 24  # of a name beside a row
FEW = 10  # images, whose accuracy tells little
PALE = 0.3
COUNTED = 7  # classes, of which a matrix has room for the numbers of images beside the shares
NAMED = 20  # classes that a matrix, or a column of bars, has room to name


def draw_confusions(outcome: Outcome) -> Figure:
    """A row a true class: shares by colour; with at most `NAMED` classes in percent too, with at most `COUNTED` beside
    counts."""
    names = [fit_name(name, LETTERS) for name in outcome.classes]
    return _draw_matrix(outcome.confusions.numpy(), names, names)


def draw_least_recognised(outcome: Outcome) -> Figure:
    """The confusions of the `NAMED` least recognised classes, the least recognised first, with one column for the
    answers that are none of them."""
    chosen = _least_recognised(outcome)
    counts = outcome.confusions[chosen].numpy()
    among = counts[:, chosen]
    names = [fit_name(outcome.classes[place], LETTERS) for place in chosen]
    others = counts.sum(axis=1, keepdims=True) - among.sum(axis=1, keepdims=True)
    return _draw_matrix(np.concatenate([among, others], axis=1), names, [*names, "another class"])


def _least_recognised(outcome: Outcome) -> list[int]:
    images = outcome.confusions.sum(dim=1)
    order = outcome.recall.nan_to_num(2.0).argsort(stable=True)
    return [int(place) for place in order if images[place]][:NAMED]


def _draw_matrix(counts: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> Figure:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    named = len(rows) <= NAMED
    counted = len(rows) <= COUNTED
    side = max(3.5, (0.47 if counted else 0.36) * len(rows) + 1) if named else 5.0
    figure = Figure(figsize=(side + 0.9, side + 0.3))
    axes = figure.add_subplot()
    image = axes.imshow(shares, vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(1), label="share of the true class")
    axes.set_xlabel("answer")
    axes.set_ylabel("true class")
    axes.grid(False)
    if not named:
        axes.set_xticks([])
        axes.set_yticks([])
        return figure
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    for row, column in np.argwhere(counts if counted else shares > 0.005):
        color = "black" if shares[row, column] > 0.55 else "white"
        share = shares[row, column]
        text = f"{share:.0%}\n{counts[row, column]:,}" if counted else f"{100 * share:.0f}"
        size = 7 if counted else 10
        look: dict[str, Any] = {"fontsize": size, "linespacing": 1.0, "in_layout": False}  # they lie within the axes
        axes.text(column, row, text, ha="center", va="center", color=color, **look)
    return figure


def draw_per_class(outcome: Outcome) -> Figure:
    """A bar a class, the least recognised at the bottom, with Wilson's 95 % interval (Wilson 1927); at most `NAMED`,
    the least recognised."""
    images = outcome.confusions.sum(dim=1).numpy()
    recall = outcome.recall.numpy()
    order = _least_recognised(outcome)
    low, high = wilson(recall[order], images[order])
    figure = Figure(figsize=(5, 0.29 * len(order) + 1.1))
    axes = figure.add_subplot()
    places = np.arange(len(order))
    axes.barh(places, recall[order], color=COLORS["sky"])
    axes.errorbar(
        recall[order], places, xerr=(recall[order] - low, high - recall[order]), fmt="none", ecolor="0.3", capsize=3
    )
    for place, share in enumerate(recall[order]):
        axes.text(1.02, place, f"{share:.1%}", va="center", fontsize=9)
    axes.axvline(outcome.correct.float().mean().item(), color=COLORS["vermilion"], linestyle="--", label="all images")
    axes.set_yticks(places, [f"{fit_name(outcome.classes[place], LETTERS)} ({images[place]:,})" for place in order])
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("accuracy on the class's images")
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower left", bbox_to_anchor=(0.6, 0.98), fontsize=9)
    return figure


def wilson(share: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 95 % interval of shares found in so many images each."""
    z = 1.959964
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return np.minimum(middle - half, share), np.maximum(middle + half, share)  # to the last bit, at 0 and 1


def draw_reliability(outcome: Outcome) -> Figure:
    """Accuracy against confidence (DeGroot and Fienberg 1983), and how many images have which confidence."""
    count, confidence, accuracy = (values.numpy() for values in outcome.bins)
    middle = (np.arange(BINS) + 0.5) / BINS
    some = count > 0
    figure = Figure(figsize=(5, 4.8))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for chosen, mark, alpha in ((count >= FEW, "", 1), (some & (count < FEW), "_", PALE)):  # _: not in the legend
        bars: dict[str, Any] = {"color": COLORS["sky"], "label": f"{mark}accuracy", "alpha": alpha}
        points: dict[str, Any] = {"color": COLORS["blue"], "label": f"{mark}at mean confidence", "alpha": alpha}
        upper.bar(middle[chosen], accuracy[chosen], width=0.9 / BINS, **bars)
        upper.plot(confidence[chosen], accuracy[chosen], "o", clip_on=False, **points)
    upper.plot([0, 1], [0, 1], "--", color="0.4", label="calibrated")
    upper.set_xlim(0, 1)
    upper.set_ylim(0, 1)
    upper.set_ylabel("accuracy")
    upper.set_title(f"ECE {outcome.calibration_error:.1%}")
    upper.legend(loc="upper left", fontsize=8.5)
    lower.bar(middle, count, width=0.9 / BINS, color="0.6")
    lower.set_ylabel("images")
    lower.set_xlabel("confidence: probability of the answer")
    for axis in (upper.xaxis, upper.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    return figure
