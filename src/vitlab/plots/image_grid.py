"""Images of a data set in rows, each with what is known of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vitlab.data.arrays import ImageArrays
from vitlab.plots.grid import fit_name
from vitlab.plots.predictions import Outcome
from vitlab.plots.style import COLORS

RIGHT, WRONG = COLORS["blue"], COLORS["vermilion"]

LETTERS = 12  # of a name beneath an image


@dataclass(frozen=True)
class Cell:
    """An image `[3, H, W]`, float in [0, 1] or uint8, with a line above it and one below."""

    image: Tensor
    above: str = ""
    below: str = ""


def draw_batch(images: Tensor, labels: Tensor, classes: Sequence[str], columns: int = 5, rows: int = 4) -> Figure:
    """The first images of a training batch.

    Args:
        images: Float `[B, 3, H, W]` in [0, 1].
        labels: int64 `[B]`, or float32 `[B, classes]` where images were mixed.
        classes: Names.
        columns, rows: Of the grid.
    """
    shown = min(len(images), columns * rows)
    cells = [Cell(images[place], above=_label(labels[place], classes)) for place in range(shown)]
    return _draw([cells[start : start + columns] for start in range(0, shown, columns)], letters=10.5)


def draw_mistakes(outcome: Outcome, images: Tensor | ImageArrays, columns: int = 4, rows: int = 4) -> Figure:
    """The images that the network is surest of and wrong: uint8 `[N, 3, H, W]`, in the outcome's order."""
    sure = outcome.confidence.masked_fill(outcome.correct, -1)
    shown = min(columns * rows, int((~outcome.correct).sum()))
    cells = []
    for place in sure.argsort(descending=True, stable=True)[:shown].tolist():
        said, true = int(outcome.predictions[place]), int(outcome.labels[place])
        above, below = (
            f"{fit_name(outcome.classes[c], LETTERS)} {outcome.probabilities[place, c]:.1%}" for c in (said, true)
        )
        cells.append(Cell(images[place], above, below))
    if not cells:
        figure = Figure(figsize=(5, 1.2))
        figure.text(0.5, 0.4, "Every image was recognised.", ha="center", va="center")
        return figure
    return _draw([cells[start : start + columns] for start in range(0, shown, columns)], inches=1.3, letters=9.5)


def draw_extremes(outcome: Outcome, images: Tensor | ImageArrays, each: int = 3, most: int = 10) -> Figure:
    """A row a class, at most `most` and those least recognised: the images with the smallest and the largest
    probability of their class, of uint8 images `[N, 3, H, W]` in the outcome's order."""
    least = outcome.recall.nan_to_num(2.0).argsort(stable=True)[:most]
    rows, names = [], []
    for label in sorted(least.tolist()):
        own = (outcome.labels == label).nonzero()[:, 0]
        if len(own):
            order = own[outcome.of_truth[own].argsort(stable=True)].tolist()
            half = (len(order) + 1) // 2  # of few images none stands on both sides
            hardest, typical = order[:half][:each], order[half:][::-1][:each]
            picked = [*hardest, *[None] * (each - len(hardest)), *typical, *[None] * (each - len(typical))]
            rows.append([p if p is None else Cell(images[p], below=_of_truth(outcome, p)) for p in picked])
            names.append(fit_name(outcome.classes[label], 2 * LETTERS))
    return _draw(rows, names, halves=("hardest", "most typical"), inches=0.85)


def _of_truth(outcome: Outcome, place: int) -> str:
    probability = f"{outcome.of_truth[place]:.1%}"
    answer = fit_name(outcome.classes[int(outcome.predictions[place])], LETTERS - 2)
    return probability if outcome.correct[place] else f"{probability}\n{answer}"


def _label(label: Tensor, classes: Sequence[str]) -> str:
    if not label.is_floating_point():
        return fit_name(classes[int(label)], LETTERS)
    shares, places = label.topk(min(2, len(label)))
    mixed = [
        f"{fit_name(classes[p], LETTERS - 3)} {s:.0%}"
        for s, p in zip(shares.tolist(), places.tolist(), strict=True)
        if s > 0
    ]
    return "\n".join(mixed)


def _draw(
    rows: Sequence[Sequence[Cell | None]],
    names: Sequence[str] = (),
    halves: Sequence[str] = (),
    inches: float = 1.0,
    letters: float = 8.5,
) -> Figure:
    """Rows of cells in one axes: laying out an axes for each image takes seconds.

    Args:
        rows: From the top; None leaves a place empty.
        names: Of the rows, on their left.
        halves: Titles over the left and the right half of the columns, which stand apart.
        inches: Side of an image.
        letters: Height of the cells' letters, points.
    """
    columns = max(map(len, rows))
    cells = [cell for row in rows for cell in row if cell is not None]
    line = 0.2 / inches  # height of a line of text, in sides of an image
    above = line * max(cell.above.count("\n") + bool(cell.above) for cell in cells)
    below = line * max(cell.below.count("\n") + bool(cell.below) for cell in cells)
    pitch, height = 1.06, 1.08 + above + below
    gap = 0.35 if halves else 0.0
    room = 0.085 / inches * max(map(len, names), default=0)  # of the names
    width = columns * pitch + gap
    figure = Figure(figsize=(inches * (width + room) + 0.1, inches * (len(rows) * height + line * len(halves)) + 0.35))
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_aspect("equal")
    for number, row in enumerate(rows):
        top = number * height
        for column, cell in enumerate(row):
            left = column * pitch + (gap if column >= columns / 2 else 0.0)
            if cell is not None:
                _show(axes, cell, left, top + above, letters)
        if names:
            axes.text(-0.08, top + above + 0.5, names[number], ha="right", va="center", fontsize=10)
    for half, title in enumerate(halves):
        middle = half * (columns / 2 * pitch + gap) + columns / 4 * pitch
        axes.text(middle, -0.06, title, ha="center", va="bottom", fontsize=11)
    axes.set_xlim(-room, width)
    axes.set_ylim(len(rows) * height, -line * bool(halves))
    return figure


def _show(axes: Axes, cell: Cell, left: float, top: float, letters: float) -> None:
    image = cell.image / 255 if cell.image.dtype == torch.uint8 else cell.image.float().clamp(0, 1)
    axes.imshow(image.permute(1, 2, 0).numpy(), extent=(left, left + 1, top + 1, top))
    # The layout need not measure them, which takes longer than to draw them: their room is within the axes' limits.
    look: dict[str, Any] = {"ha": "center", "fontsize": letters, "in_layout": False}
    axes.text(left + 0.5, top - 0.04, cell.above, va="bottom", color=WRONG if cell.below else "black", **look)
    axes.text(left + 0.5, top + 1.04, cell.below, va="top", color=RIGHT if cell.above else "black", **look)
