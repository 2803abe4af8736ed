"""Grids of images: the first batch, errors, typical images, predictions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import Tensor

from vitlab.data.arrays import ImageArrays
from vitlab.data.decoding import read_image
from vitlab.plots.grid import Tile, draw_sheet, shorten_name, split_into_rows, stretch_image
from vitlab.plots.io import FigureText
from vitlab.plots.predictions import Predictions
from vitlab.plots.style import COLORS

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


def draw_batch(images: Tensor, labels: Tensor, classes: Sequence[str], columns: int = 5, rows: int = 4) -> Figure:
    """The first images of a training batch.

    Args:
        images: Float `[B, 3, H, W]` in [0, 1].
        labels: int64 `[B]`, or float32 `[B, classes]` of mixed images.
        classes: Class names.
        columns, rows: Size of the grid.
    """
    pairs = list(zip(255 * images.clamp(0, 1), labels, strict=True))[: columns * rows]
    tiles = [Tile(stretch_image(image, 150), _describe_label(label, classes)) for image, label in pairs]
    return draw_sheet(split_into_rows(tiles, columns), font_size=10.5)


def describe_first_batch(patch_dropout: float) -> str:
    """Mention what the figure does not show: the fraction of patches that the model leaves out."""
    if not patch_dropout:
        return ""
    return f"The model leaves out a random {patch_dropout:.0%} of each image's patches, which is not shown."


def draw_errors(predictions: Predictions, images: Tensor | ImageArrays, columns: int = 4, rows: int = 4) -> Figure:
    """The most confident errors, of uint8 images `[N, 3, H, W]` in the order of the predictions."""
    confidence = predictions.confidence.masked_fill(predictions.correct, -1)
    shown = min(columns * rows, int((~predictions.correct).sum()))
    tiles = []
    for index in confidence.argsort(descending=True, stable=True)[:shown].tolist():
        above, below = (
            f"{shorten_name(predictions.classes[label], NAME_LENGTH)} {predictions.probabilities[index, label]:.1%}"
            for label in (int(predictions.predicted[index]), int(predictions.labels[index]))
        )
        tiles.append(Tile(stretch_image(images[index], 195), above, below))
    if not tiles:
        figure = Figure(figsize=(5, 1.2))
        figure.text(0.5, 0.4, "Every image is classified correctly.", ha="center", va="center")
        return figure
    colors = (COLORS["vermilion"], COLORS["blue"])
    return draw_sheet(split_into_rows(tiles, columns), font_size=9.5, colors=colors)


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
    rows: list[list[Tile | None]] = []
    labels = sorted(predictions.worst_classes(most))
    for label in labels:
        indices = (predictions.labels == label).nonzero()[:, 0]
        order = indices[predictions.label_probability[indices].argsort(stable=True)].tolist()
        half = (len(order) + 1) // 2  # no image appears on both sides
        hardest, typical = order[:half][:each], order[half:][::-1][:each]
        row = [*hardest, *[None] * (each - len(hardest) + 1), *typical, *[None] * (each - len(typical))]
        rows.append(
            [i if i is None else Tile(stretch_image(images[i], 128), below=_describe(predictions, i)) for i in row]
        )
    headings = [""] * (2 * each + 1)
    headings[each // 2], headings[each + 1 + each // 2] = "hardest", "most typical"
    names = [shorten_name(predictions.classes[label], 2 * NAME_LENGTH) for label in labels]
    return draw_sheet(rows, headings, names, font_size=8.5)


def draw_predictions(predictions: Sequence[tuple[Path, str, float]]) -> Figure:
    """Image files, each whole, with its predicted class, the probability, and below it the file name."""
    tiles = []
    for path, name, probability in predictions:
        image = read_image(path)
        resampling = Image.Resampling.NEAREST if max(image.size) < 100 else Image.Resampling.BICUBIC
        square = ImageOps.pad(image, (250, 250), resampling, "white")
        pixels = stretch_image(torch.from_numpy(np.array(square)).permute(2, 0, 1), 250)
        tiles.append(Tile(pixels, f"{shorten_name(name, 18)} {probability:.0%}", shorten_name(path.name, 22)))
    rows = split_into_rows(tiles, min(6, len(tiles)))
    return draw_sheet(rows, font_size=9, colors=("black", "0.4"))


def _describe(predictions: Predictions, index: int) -> str:
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
