"""Grids of images: the first batch, errors, typical images, predictions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vitlab.data.arrays import ImageArrays
from vitlab.data.decoding import read_image
from vitlab.plots.grid import shorten_name
from vitlab.plots.io import FigureText
from vitlab.plots.predictions import Predictions
from vitlab.plots.style import COLORS

CORRECT_COLOR, WRONG_COLOR = COLORS["blue"], COLORS["vermilion"]
NAME_LENGTH = 12  # characters of a class name next to an image
CONFIDENT = 0.9  # probability

FIRST_BATCH = FigureText(
    "data/first_batch",
    "First training batch as the model sees it",
    "After augmentation and mixing, at the model's image size, with the normalisation undone. Check that the "
    "images still show their class, that the augmentation is visible but not too strong, and that the labels are "
    "right; mixed images show the fraction of each class.",
)
ERRORS = FigureText(
    "test/most_confident_errors",
    "Most confident errors: prediction above, true class below",
    "The test images with the most probable wrong predictions. Above each image the predicted class, below it the "
    "true class, with their probabilities. Wrong labels in the data show up here first.",
)
EXTREMES = FigureText(
    "test/hardest_and_most_typical",
    "Hardest and most typical images, with the true class's probability",
    "For each class, the test images with the lowest (left) and the highest (right) probability of the true class; "
    "below it the predicted class, if that is another one. Of many classes, the ten with the lowest accuracy.",
)


@dataclass(frozen=True)
class Cell:
    """An image `[3, H, W]`, float in [0, 1] or uint8, with a text above it and one below."""

    image: Tensor
    above: str = ""
    below: str = ""


def draw_batch(images: Tensor, labels: Tensor, classes: Sequence[str], columns: int = 5, rows: int = 4) -> Figure:
    """The first images of a training batch.

    Args:
        images: Float `[B, 3, H, W]` in [0, 1].
        labels: int64 `[B]`, or float32 `[B, classes]` of mixed images.
        classes: Class names.
        columns, rows: Size of the grid.
    """
    pairs = list(zip(images, labels, strict=True))[: columns * rows]
    cells = [Cell(image, above=_describe_label(label, classes)) for image, label in pairs]
    return _draw([cells[start : start + columns] for start in range(0, len(cells), columns)], font_size=10.5)


def describe_first_batch(patch_dropout: float) -> str:
    """Mention what the figure does not show: the fraction of patches that the model leaves out."""
    if not patch_dropout:
        return ""
    return f"The model leaves out a random {patch_dropout:.0%} of each image's patches, which is not shown."


def draw_errors(predictions: Predictions, images: Tensor | ImageArrays, columns: int = 4, rows: int = 4) -> Figure:
    """The most confident errors, of uint8 images `[N, 3, H, W]` in the order of the predictions."""
    confidence = predictions.confidence.masked_fill(predictions.correct, -1)
    shown = min(columns * rows, int((~predictions.correct).sum()))
    cells = []
    for index in confidence.argsort(descending=True, stable=True)[:shown].tolist():
        above, below = (
            f"{shorten_name(predictions.classes[label], NAME_LENGTH)} {predictions.probabilities[index, label]:.1%}"
            for label in (int(predictions.predicted[index]), int(predictions.labels[index]))
        )
        cells.append(Cell(images[index], above, below))
    if not cells:
        figure = Figure(figsize=(5, 1.2))
        figure.text(0.5, 0.4, "Every image is classified correctly.", ha="center", va="center")
        return figure
    return _draw([cells[start : start + columns] for start in range(0, shown, columns)], inches=1.3, font_size=9.5)


def describe_errors(predictions: Predictions) -> str:
    """Count the errors, and the confident ones."""
    wrong = ~predictions.correct
    confident = int((wrong & (predictions.confidence > CONFIDENT)).sum())
    return (
        f"In this run, {int(wrong.sum()):,} of {len(wrong):,} predictions are wrong, {confident:,} of them with a "
        f"confidence above {CONFIDENT:.0%}."
    )


def draw_extremes(predictions: Predictions, images: Tensor | ImageArrays, each: int = 3, most: int = 10) -> Figure:
    """A row for each class, at most the `most` worst: the images with the lowest and the highest probability of their
    class, of uint8 images `[N, 3, H, W]` in the order of the predictions."""
    rows, names = [], []
    for label in sorted(predictions.worst_classes(most)):
        indices = (predictions.labels == label).nonzero()[:, 0]
        order = indices[predictions.label_probability[indices].argsort(stable=True)].tolist()
        half = (len(order) + 1) // 2  # no image appears on both sides
        hardest, typical = order[:half][:each], order[half:][::-1][:each]
        row = [*hardest, *[None] * (each - len(hardest)), *typical, *[None] * (each - len(typical))]
        rows.append([i if i is None else Cell(images[i], below=_describe_prediction(predictions, i)) for i in row])
        names.append(shorten_name(predictions.classes[label], 2 * NAME_LENGTH))
    return _draw(rows, names, halves=("hardest", "most typical"), inches=0.85)


def draw_predictions(predictions: Sequence[tuple[Path, str, float]], file: Path) -> None:
    """Write a PNG of image files: each whole, with its predicted class, the probability, and the file name."""
    columns = min(6, len(predictions))
    rows = math.ceil(len(predictions) / columns)
    figure = Figure(figsize=(2.2 * columns, 2.6 * rows), dpi=120, layout="constrained")
    for number, (path, name, probability) in enumerate(predictions, start=1):
        axes = figure.add_subplot(rows, columns, number, xticks=[], yticks=[])
        image = read_image(path)
        image.thumbnail((400, 400))
        axes.imshow(image, interpolation="nearest" if max(image.size) < 100 else "antialiased")
        axes.set_title(f"{name}  {probability:.0%}", fontsize=10, parse_math=False)
        axes.set_xlabel(shorten_name(path.name, 28), fontsize=7, color="0.4", parse_math=False)
    figure.savefig(file, format="png")


def _describe_prediction(predictions: Predictions, index: int) -> str:
    probability = f"{predictions.label_probability[index]:.1%}"
    predicted = shorten_name(predictions.classes[int(predictions.predicted[index])], NAME_LENGTH - 2)
    return probability if predictions.correct[index] else f"{probability}\n{predicted}"


def _describe_label(label: Tensor, classes: Sequence[str]) -> str:
    if not label.is_floating_point():
        return shorten_name(classes[int(label)], NAME_LENGTH)
    fractions, labels = (values.tolist() for values in label.topk(min(2, len(label))))
    mixed = [
        f"{shorten_name(classes[index], NAME_LENGTH - 3)} {fraction:.0%}"
        for fraction, index in zip(fractions, labels, strict=True)
        if fraction > 0
    ]
    return "\n".join(mixed)


def _draw(
    rows: Sequence[Sequence[Cell | None]],
    names: Sequence[str] = (),
    halves: Sequence[str] = (),
    inches: float = 1.0,
    font_size: float = 8.5,
) -> Figure:
    """Draw rows of cells in one axes: laying out an axes for each image takes seconds.

    Args:
        rows: From the top; None leaves a gap.
        names: Row names, on the left.
        halves: Titles above the left and the right half of the columns, with a gap between the halves.
        inches: Side of an image.
        font_size: Size of the cells' text, points.
    """
    columns = max(map(len, rows))
    cells = [cell for row in rows for cell in row if cell is not None]
    line = 0.2 / inches  # height of a line of text; all lengths below are in image sides
    above, below = (
        line * max(text.count("\n") + bool(text) for text in texts)
        for texts in ([cell.above for cell in cells], [cell.below for cell in cells])
    )
    pitch, height = 1.06, 1.08 + above + below
    gap = 0.35 if halves else 0.0
    margin = 0.085 / inches * max(map(len, names), default=0)
    width = columns * pitch + gap
    figure = Figure(
        figsize=(inches * (width + margin) + 0.1, inches * (len(rows) * height + line * len(halves)) + 0.35)
    )
    axes = figure.add_subplot(aspect="equal")
    axes.set_axis_off()
    for number, row in enumerate(rows):
        top = number * height + above
        for column, cell in enumerate(row):
            if cell is not None:
                _draw_cell(axes, cell, column * pitch + (gap if column >= columns / 2 else 0.0), top, font_size)
        if names:
            axes.text(-0.08, top + 0.5, names[number], ha="right", va="center", fontsize=10)
    for half, title in enumerate(halves):
        middle = half * (columns / 2 * pitch + gap) + columns / 4 * pitch
        axes.text(middle, -0.06, title, ha="center", va="bottom", fontsize=11)
    axes.set(xlim=(-margin, width), ylim=(len(rows) * height, -line * bool(halves)))
    return figure


def _draw_cell(axes: Axes, cell: Cell, left: float, top: float, font_size: float) -> None:
    image = cell.image / 255 if cell.image.dtype == torch.uint8 else cell.image.float().clamp(0, 1)
    axes.imshow(image.permute(1, 2, 0).numpy(), extent=(left, left + 1, top + 1, top))
    # Measuring text for the layout takes longer than drawing it; the axes' limits leave room for it.
    look: dict[str, Any] = {"ha": "center", "fontsize": font_size, "in_layout": False}
    axes.text(left + 0.5, top - 0.04, cell.above, va="bottom", color=WRONG_COLOR if cell.below else "black", **look)
    axes.text(left + 0.5, top + 1.04, cell.below, va="top", color=CORRECT_COLOR if cell.above else "black", **look)
