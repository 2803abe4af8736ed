"""Loss, accuracy and learning rate by epoch, and the planned learning rate."""

import warnings
from collections.abc import Mapping, Sequence
from math import log
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from vitlab.plots.io import COLORS, FigureText

LINES = {
    "train": ("train/{}", COLORS["orange"]),
    "val": ("val/{}", COLORS["blue"]),
    "val, EMA weights": ("val/{}_ema", COLORS["green"]),
}

CURVES = FigureText(
    "curves/loss_and_accuracy",
    "Loss, accuracy and learning rate by epoch",
    "If the accuracy still rises at the right end, train for more epochs. If the validation loss turns up while "
    "the training loss falls, the model overfits. The dotted line is the epoch whose weights were kept, the dashed "
    "line chance, if the curve is near it. The learning rate is that at the end of the epoch.",
)
LR_SCHEDULE = FigureText(
    "plan/learning_rate",
    "Planned learning rate",
    "The whole schedule, computed before the first step. If layers have different learning rates, there is a line "
    "for each, named by its multiple of optimizer.lr.",
)


def draw_curves(
    rows: Sequence[Mapping[str, float]], passed: Sequence[float], best: float | None, classes: int
) -> Figure:
    """The metrics of rows of `metrics.csv` over the epochs `passed` at the end of each, and the level of chance; `best`
    is the number of epochs of the weights that were kept."""
    figure = Figure(figsize=(9, 3.4))
    panels: Any = figure.subplots(1, 3, width_ratios=(3, 3, 2))
    chance = {"loss": log(classes), "acc": 1 / classes}
    for axes, metric, unit in ((panels[0], "loss", "loss (nats)"), (panels[1], "acc", "accuracy")):
        for label, (pattern, color) in LINES.items():
            name = pattern.format(metric)
            points = [(epochs, row[name]) for epochs, row in zip(passed, rows, strict=True) if name in row]
            if points:
                axes.plot(*zip(*points, strict=True), "o-", color=color, markersize=3, label=label)
        if best is not None:
            axes.axvline(best, color="0.4", linestyle=":", label="kept")
        axes.set_ylabel(unit)
        low, high = axes.get_ylim()
        if low - (high - low) < chance[metric] < high + (high - low):  # else it would flatten the curves
            axes.axhline(chance[metric], color="0.4", linestyle="--", label="chance")
    panels[1].yaxis.set_major_formatter(PercentFormatter(1))
    panels[2].plot(passed, [row.get("lr") for row in rows], "o-", color="0.3", markersize=3)
    panels[2].set_ylabel("learning rate")
    panels[2].yaxis.set_major_formatter(lambda rate, _: f"{rate:.3g}")
    for axes in panels:
        axes.set(xlabel="epoch", xlim=(0, 1.05 * passed[-1]))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9)
    return figure


def compute_lr_schedule(optimizer: Any, scheduler: Any, updates: int, group: dict[str, Any]) -> list[float]:
    """The learning rate of a parameter group with these settings before each update of the schedule, with an optimizer
    created from parameter groups, and a scheduler from the optimizer."""
    dummy = optimizer([{**group, "params": [torch.nn.Parameter(torch.zeros(1))]}])
    schedule = scheduler(dummy)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the dummy optimizer takes no steps
        for _ in range(updates):
            rates.append(float(dummy.param_groups[0]["lr"]))
            schedule.step()
    return rates


def draw_lr_schedule(rates: dict[str, list[float]], interval: float, epoch: float | None, unit: str) -> Figure:
    """A line for each name; the time between two of its values (`interval`) and that of an epoch are in `unit`."""
    figure = Figure(figsize=(5.0, 3.8))
    axes: Any = figure.add_subplot(xlabel=unit, ylabel="learning rate")
    for name, values in rates.items():
        times = [update * interval for update in range(len(values) + 1)]
        axes.plot(times, [*values, values[-1]], label=name, drawstyle="steps-post", linewidth=2.0)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:.3g}")
    if epoch is not None:
        top = axes.secondary_xaxis("top", functions=(lambda time: time / epoch, lambda count: count * epoch))
        top.set_xlabel("epoch")
    if len(rates) > 1:
        axes.legend(fontsize=9)
    return figure
