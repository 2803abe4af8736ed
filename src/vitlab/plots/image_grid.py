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
from vitlab.plots.classification import Predictions
from vitlab.plots.grid import Tile, draw_sheet, shorten_name, split_into_rows, stretch_image
from vitlab.plots.io import COLORS, FigureText

BATCH_COLUMNS, ERROR_COLUMNS = 5, 4
ERRORS_SHOWN = 16
EXTREMES_SHOWN, EXTREME_CLASSES = 3, 10  # hardest and most typical images of a class, and classes
EXTREME_NAMES = ("hardest", "2nd", "3rd", "3rd", "2nd", "most typical")
FEW_CLASSES = 5
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
    "For each class, the test images with the lowest and the highest probability of the true class, which is given "
    "below each, with the predicted class if that is another one. Of many classes, the ten with the lowest accuracy.",
)


def draw_batch(images: Tensor, labels: Tensor, classes: Sequence[str]) -> Figure:
    """Training images, float `[B, 3, H, W]` in [0, 1]; labels are int64 `[B]`, or float32 `[B, classes]` if mixed."""
    pairs = zip(255 * images.clamp(0, 1), labels, strict=True)
    tiles = [Tile(stretch_image(image, 150), _describe_label(label, classes)) for image, label in pairs]
    return draw_sheet(split_into_rows(tiles, BATCH_COLUMNS), font_size=10.5)


def draw_errors(predictions: Predictions, images: Tensor | ImageArrays) -> Figure:
    """The most confident errors, of uint8 images `[N, 3, H, W]` in the order of the predictions."""
    wrong = (~predictions.correct).nonzero()[:, 0]
    order = predictions.confidence[wrong].argsort(descending=True, stable=True)
    tiles = []
    for index in wrong[order][:ERRORS_SHOWN].tolist():
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
    return draw_sheet(split_into_rows(tiles, ERROR_COLUMNS), font_size=9.5, colors=colors)


def describe_errors(predictions: Predictions) -> str:
    wrong = ~predictions.correct
    confident = int((wrong & (predictions.confidence > CONFIDENT)).sum())
    return (
        f"In this run, {int(wrong.sum()):,} of {len(wrong):,} predictions are wrong, {confident:,} of them with a "
        f"confidence above {CONFIDENT:.0%}."
    )


def draw_extremes(predictions: Predictions, images: Tensor | ImageArrays) -> Figure:
    """The images with the lowest and the highest probability of their class, of uint8 images `[N, 3, H, W]` in the
    order of the predictions: a column for each class, or the worst, or a row for each of few classes."""
    by_class: list[list[Tile | None]] = []
    labels = sorted(predictions.worst_classes(EXTREME_CLASSES))
    for label in labels:
        indices = (predictions.labels == label).nonzero()[:, 0]
        order = indices[predictions.label_probability[indices].argsort(stable=True)].tolist()
        half = (len(order) + 1) // 2  # no image appears on both sides
        tiles: list[Tile | None] = [None] * len(EXTREME_NAMES)
        hardest = zip(range(EXTREMES_SHOWN), order[:half], strict=False)
        typical = zip(range(-1, -EXTREMES_SHOWN - 1, -1), order[half:][::-1], strict=False)
        for place, index in (*hardest, *typical):
            below = f"{predictions.label_probability[index]:.1%}"
            if not predictions.correct[index]:
                predicted = predictions.classes[int(predictions.predicted[index])]
                below += f"\n{shorten_name(predicted, NAME_LENGTH - 2)}"
            tiles[place] = Tile(stretch_image(images[index], 128), below=below)
        by_class.append(tiles)
    names = [shorten_name(predictions.classes[label], NAME_LENGTH) for label in labels]
    if len(labels) <= FEW_CLASSES:
        return draw_sheet(by_class, EXTREME_NAMES, names, font_size=8.5)
    return draw_sheet(list(zip(*by_class, strict=True)), names, EXTREME_NAMES, font_size=8.5)


def draw_predictions(predictions: Sequence[tuple[Path, str, float]]) -> Figure:
    """Image files, each whole, with its predicted class, the probability, and below it the file name."""
    tiles = []
    for path, name, probability in predictions:
        image = read_image(path)
        longest = max(image.size)
        resampling = Image.Resampling.NEAREST if longest < 100 else Image.Resampling.BICUBIC
        width, height = (max(1, round(side / longest * 250)) for side in image.size)
        square = ImageOps.pad(image.resize((width, height), resampling), (250, 250), color="white")
        pixels = stretch_image(torch.from_numpy(np.array(square)).permute(2, 0, 1), 250)
        tiles.append(Tile(pixels, f"{shorten_name(name, 18)} {probability:.0%}", shorten_name(path.name, 22)))
    rows = split_into_rows(tiles, min(6, len(tiles)))
    return draw_sheet(rows, font_size=9, colors=("black", "0.4"))


def _describe_label(label: Tensor, classes: Sequence[str]) -> str:
    if not label.is_floating_point():
        return shorten_name(classes[int(label)], NAME_LENGTH)
    fractions, labels = (values.tolist() for values in label.topk(min(2, len(label))))
    names = [shorten_name(classes[index], NAME_LENGTH - 3) for index in labels]
    return "\n".join(f"{name} {part:.0%}" for name, part in zip(names, fractions, strict=True) if part > 0)
