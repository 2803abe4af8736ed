"""The learning rate as planned before training."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from vitlab.plots.style import COLORS


def planned_rates(optimizer: Any, scheduler: Any, moves: int, group: dict[str, Any]) -> list[float]:
    """The learning rates of a parameter group, one for each stretch between two moves of the schedule.

    Args:
        optimizer: Makes an optimizer of parameter groups.
        scheduler: Makes a schedule of an optimizer.
        moves: How often it moves in the run.
        group: The group's settings, without its parameters.
    """
    stand_in = optimizer([{**group, "params": [torch.nn.Parameter(torch.zeros(1))]}])
    schedule = scheduler(stand_in)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the stand-in's weights are never moved
        for _ in range(moves):
            rates.append(float(stand_in.param_groups[0]["lr"]))
            schedule.step()
    return rates


def draw_plan(rates: Sequence[tuple[str, Sequence[float]]], stretch: float, epoch: float | None, unit: str) -> Figure:
    """Learning rates over the run, a line a name.

    Args:
        rates: As `planned_rates` gives them.
        stretch: Between two moves of the schedule, in units.
        epoch: Its length in units; None where it is not known.
        unit: Of the run's length.
    """
    figure = Figure()
    axes: Any = figure.add_subplot()
    colors = list(COLORS.values())
    for place, (name, values) in enumerate(rates):
        places = [move * stretch for move in range(len(values) + 1)]
        look = {"drawstyle": "steps-post", "linewidth": 2.0, "color": colors[place % len(colors)]}
        axes.plot(places, [*values, values[-1]], label=name, **look)
    axes.set_xlabel(unit)
    axes.set_ylabel("learning rate")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:.3g}")
    if epoch is not None:
        axes.secondary_xaxis("top", functions=(lambda place: place / epoch, lambda count: count * epoch)).set_xlabel(
            "epoch"
        )
    if len(rates) > 1:
        axes.legend(fontsize=9)
    return figure
