"""Predictions on labelled images: confusion matrix, accuracy, calibration."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

from vitlab.plots.grid import shorten_name
from vitlab.plots.io import COLORS, FigureText

BINS = 15  # of the confidence, as in Guo et al. 2017, "On calibration of modern neural networks"

NAME_LENGTH = 24  # characters of a class name next to a row
FEW_IMAGES = 10  # an accuracy on fewer is unreliable, and its bar is pale
PALE = 0.3
MAX_COUNTED = 7  # a matrix of at most so many classes also shows the numbers of images
MAX_NAMED = 20  # classes whose names fit next to a matrix or a column of bars
LEAST_ERROR_SCALE = 0.1  # fraction at the end of the errors' colour scale, at least: a rare error stays pale
EDGE = "0.8"  # grey of a matrix's frame and of the lines between its cells

CONFUSION_MATRIX = FigureText(
    "confusion_matrix",
    "Confusion matrix (% of each true class)",
    "Each row is a true class, each column a predicted class; the colour, and the number if there is room, is the "
    "percentage of the row's images with that prediction. The diagonal (blue) holds the correct predictions, all other "
    "cells (orange) the errors, with a colour scale of their own. Half a percent or less has no number.",
)
WORST_CLASSES = FigureText(
    "confusion_matrix_worst_classes",
    "Confusion matrix of the 20 classes with the lowest accuracy (%)",
    "Part of the confusion matrix: the classes with the lowest accuracy, worst first, with names and percentages. "
    "The last column counts predictions of all other classes.",
)
CLASS_ACCURACY = FigureText(
    "accuracy_by_class",
    "Accuracy by class",
    "The fraction of each class's images that is classified correctly, the best class on top, with the number of "
    "images; of more than 20 classes, the worst 20. Thin lines are 95% confidence intervals (Wilson).",
)
RELIABILITY = FigureText(
    "reliability",
    "Reliability diagram",
    "Images are grouped by the probability of their prediction; each bar is the accuracy of a group. Bars below "
    "the dashed line: the model is overconfident. Bars above: it is underconfident, as with label smoothing. ECE, "
    "the expected calibration error, is the mean distance from the line, weighted by the number of images, shown "
    "below. Pale bars have fewer than ten images and are unreliable.",
)


@dataclass(frozen=True)
class Predictions:
    """Predictions on `N` labelled images, and their statistics."""

    probabilities: Tensor  # float32 [N, classes]
    predicted: Tensor  # int64 [N], the predicted classes
    labels: Tensor  # int64 [N], the true classes
    classes: Sequence[str]  # names

    @cached_property
    def correct(self) -> Tensor:
        return self.predicted == self.labels

    @cached_property
    def confidence(self) -> Tensor:
        """Probabilities of the predicted classes, `[N]`."""
        return self.probabilities.gather(1, self.predicted[:, None])[:, 0]

    @cached_property
    def label_probability(self) -> Tensor:
        """Probabilities of the true classes, `[N]`."""
        return self.probabilities.gather(1, self.labels[:, None])[:, 0]

    @cached_property
    def confusion_matrix(self) -> Tensor:
        """Number of images by true class (row) and predicted class (column), int64 `[classes, classes]`."""
        return multiclass_confusion_matrix(self.predicted, self.labels, len(self.classes))

    @cached_property
    def recall(self) -> Tensor:
        """Fraction of each class's images that is classified correctly, `[classes]`; NaN without images."""
        return self.confusion_matrix.diag() / self.confusion_matrix.sum(dim=1)

    def worst_classes(self, most: int) -> list[int]:
        """Classes that have images, by rising recall."""
        order = self.recall.nan_to_num(2.0).argsort(stable=True)
        return [int(label) for label in order if not self.recall[label].isnan()][:most]

    @cached_property
    def calibration_error(self) -> float:
        """ECE: mean distance between confidence and accuracy over `BINS` bins of the confidence, weighted by images."""
        return multiclass_calibration_error(self.probabilities, self.labels, len(self.classes), n_bins=BINS).item()

    @cached_property
    def bins(self) -> tuple[Tensor, Tensor, Tensor]:
        """Images, mean confidence and accuracy (NaN without images) in each of `BINS` equal bins of the confidence."""
        index = torch.bucketize(self.confidence, torch.linspace(0, 1, BINS + 1)[1:-1], right=True)
        count = torch.bincount(index, minlength=BINS)
        confidence, accuracy = (
            torch.zeros(BINS).index_add(0, index, values.float()) / count for values in (self.confidence, self.correct)
        )
        return count, confidence, accuracy

    def confused_pairs(self, most: int = 3) -> list[tuple[str, str, int]]:
        """(true class, predicted class, images) of the most frequent errors."""
        errors = self.confusion_matrix.clone().fill_diagonal_(0)
        pairs = []
        for index in errors.flatten().argsort(descending=True, stable=True)[:most].tolist():
            true, predicted = divmod(index, len(self.classes))
            if errors[true, predicted]:
                pairs.append((self.classes[true], self.classes[predicted], int(errors[true, predicted])))
        return pairs

    def per_class(self) -> dict[str, dict[str, Any]]:
        """Images, predictions ("answers"), recall ("acc"), precision and F1 of each class; None if not defined."""
        table = {}
        matrix = self.confusion_matrix.double()
        columns = (x.tolist() for x in (matrix.sum(dim=1), matrix.sum(dim=0), matrix.diag()))
        for name, images, answers, correct in zip(self.classes, *columns, strict=True):
            table[name] = {
                "images": int(images),
                "answers": int(answers),
                "acc": correct / images if images else None,
                "precision": correct / answers if answers else None,
                "f1": 2 * correct / (images + answers) if images else None,
            }
        return table

    def confusion_table(self) -> list[list[Any]]:
        """The confusion matrix with the names of the true (rows) and predicted classes (columns), for a CSV file."""
        rows = zip(self.classes, self.confusion_matrix.tolist(), strict=True)
        return [["true \\ predicted", *self.classes], *([name, *counts] for name, counts in rows)]

    def as_data(self) -> dict[str, Any]:
        """The content of `test_details.json`."""
        return {
            "images": len(self.labels),
            "accuracy": self.correct.float().mean().item(),
            "confidence": self.confidence.mean().item(),
            "calibration_error": self.calibration_error,
            "per_class": self.per_class(),
            "most_confused": [
                {"class": true, "taken_for": predicted, "images": count}
                for true, predicted, count in self.confused_pairs(10)
            ],
        }


def draw_confusion_matrix(predictions: Predictions) -> Figure:
    """The fraction of each true class (row) by predicted class, as colours; also in percent for at most `MAX_NAMED`
    classes, and with the numbers of images for at most `MAX_COUNTED`."""
    names = [shorten_name(name, NAME_LENGTH) for name in predictions.classes]
    return _draw_matrix(predictions.confusion_matrix.numpy(), names, names)


def describe_confusions(predictions: Predictions) -> str:
    if not (pairs := predictions.confused_pairs(1)):
        return "In this run, every image is classified correctly."
    true, predicted, images = pairs[0]
    total = int((predictions.labels == list(predictions.classes).index(true)).sum())
    return f"In this run, the most frequent error is {true} predicted as {predicted}: {images:,} of {total:,} images."


def draw_worst_classes(predictions: Predictions) -> Figure:
    """The confusion matrix of the `MAX_NAMED` classes with the lowest accuracy, worst first, with one column for
    predictions of all other classes."""
    chosen = predictions.worst_classes(MAX_NAMED)
    counts = predictions.confusion_matrix[chosen].numpy()
    among = counts[:, chosen]
    names = [shorten_name(predictions.classes[label], NAME_LENGTH) for label in chosen]
    others = counts.sum(axis=1, keepdims=True) - among.sum(axis=1, keepdims=True)
    return _draw_matrix(np.concatenate([among, others], axis=1), names, [*names, "another class"])


def _draw_matrix(counts: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """A matrix whose diagonal and whose errors have colour maps of their own, both white at zero."""
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    diagonal = np.eye(*counts.shape) == 1
    named, counted = len(rows) <= MAX_NAMED, len(rows) <= MAX_COUNTED
    largest_error = max(LEAST_ERROR_SCALE, fractions[~diagonal].max(initial=0))
    scales = [
        ScalarMappable(Normalize(0, end), LinearSegmentedColormap.from_list("", ["white", COLORS[color]]))
        for end, color in ((1, "blue"), (largest_error, "vermilion"))
    ]
    correct, errors = (scale.to_rgba(fractions) for scale in scales)
    colors = np.where(diagonal[..., None], correct, errors)

    side = max(3.5, (0.47 if counted else 0.36) * len(rows) + 1) if named else 5.0
    figure = Figure(figsize=(side + 1.1, side + 0.3))
    grid = figure.add_gridspec(2, 2, width_ratios=(30, 1))
    axes = figure.add_subplot(grid[:, 0], xlabel="predicted class", ylabel="true class")
    axes.imshow(colors)
    for place, (scale, label) in enumerate(zip(scales, ("correct", "errors"), strict=True)):
        bar = figure.add_subplot(grid[place, 1])
        figure.colorbar(scale, cax=bar, format=PercentFormatter(1, decimals=0), label=label)
    axes.spines[:].set(visible=True, color=EDGE)
    axes.grid(False)
    if not named:
        axes.set(xticks=[], yticks=[])
        return figure
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(np.arange(len(columns) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color=EDGE, linewidth=0.5)
    axes.tick_params(which="both", length=0)
    font_size = min(10.0, 15 * (side - 1) / len(rows)) if counted else 10.0
    for row, column in np.argwhere(counts if counted else fractions > 0.005):
        fraction = fractions[row, column]
        text = f"{fraction:.0%}\n{counts[row, column]:,}" if counted else f"{100 * fraction:.0f}"
        look: dict[str, Any] = {"fontsize": font_size, "color": _text_color(colors[row, column])}
        # The text lies within the axes: leaving it out of the layout saves time.
        axes.text(column, row, text, ha="center", va="center", linespacing=1.0, in_layout=False, **look)
    return figure


def _text_color(background: np.ndarray) -> str:
    """Black or white, whichever has the higher contrast with a colour (by its relative luminance, WCAG 2)."""
    linear = ((background[:3] + 0.055) / 1.055) ** 2.4
    return "white" if linear @ (0.2126, 0.7152, 0.0722) < 0.179 else "black"


def draw_class_accuracy(predictions: Predictions) -> Figure:
    """A bar for each class, the worst at the bottom, with its Wilson 95 % interval (Wilson 1927); at most `MAX_NAMED`,
    the worst."""
    order = predictions.worst_classes(MAX_NAMED)
    images, recall = predictions.confusion_matrix.sum(dim=1).numpy()[order], predictions.recall.numpy()[order]
    low, high = wilson_interval(recall, images)
    rows = np.arange(len(order))
    figure = Figure(figsize=(5, 0.29 * len(order) + 1.1))
    axes = figure.add_subplot(xlim=(0, 1), xlabel="accuracy on the class's images")
    axes.barh(rows, recall, color=COLORS["sky"])
    axes.errorbar(recall, rows, xerr=(recall - low, high - recall), fmt="none", ecolor="0.3", capsize=3)
    for row, value in enumerate(recall):
        axes.text(1.02, row, f"{value:.1%}", va="center", fontsize=9)
    accuracy = predictions.correct.float().mean().item()
    axes.axvline(accuracy, color=COLORS["vermilion"], linestyle="--", label="all images")
    names = [shorten_name(predictions.classes[label], NAME_LENGTH) for label in order]
    axes.set_yticks(rows, [f"{name} ({count:,})" for name, count in zip(names, images, strict=True)])
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower left", bbox_to_anchor=(0.6, 0.98), fontsize=9)
    return figure


def describe_classes(predictions: Predictions) -> str:
    order = predictions.worst_classes(len(predictions.classes))
    best = max(order, key=lambda label: float(predictions.recall[label]))
    low, high = (f"{predictions.classes[label]} ({predictions.recall[label]:.1%})" for label in (order[0], best))
    return f"In this run, from {low} to {high}."


def wilson_interval(fraction: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 95 % confidence intervals of fractions, each of `count` images."""
    z = 1.959964
    middle = (fraction + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(fraction * (1 - fraction) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return np.minimum(middle - half, fraction), np.maximum(middle + half, fraction)  # rounding must not cross 0 and 1


def draw_reliability(predictions: Predictions) -> Figure:
    """Accuracy against confidence (DeGroot and Fienberg 1983), and a histogram of the confidence."""
    count, confidence, accuracy = (values.numpy() for values in predictions.bins)
    middle = (np.arange(BINS) + 0.5) / BINS
    figure = Figure(figsize=(5, 4.8))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for chosen, prefix, alpha in (
        (count >= FEW_IMAGES, "", 1),
        ((count > 0) & (count < FEW_IMAGES), "_", PALE),  # "_" keeps a label out of the legend
    ):
        bars: dict[str, Any] = {"color": COLORS["sky"], "label": f"{prefix}accuracy", "alpha": alpha}
        points: dict[str, Any] = {"color": COLORS["blue"], "label": f"{prefix}at mean confidence", "alpha": alpha}
        upper.bar(middle[chosen], accuracy[chosen], width=0.9 / BINS, **bars)
        # A line without points that is not clipped would distort the layout.
        upper.plot(confidence[chosen], accuracy[chosen], "o", clip_on=False, in_layout=False, **points)
    upper.plot([0, 1], [0, 1], "--", color="0.4", label="calibrated")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title=f"ECE {predictions.calibration_error:.1%}")
    upper.legend(loc="upper left", fontsize=8.5)
    lower.bar(middle, count, width=0.9 / BINS, color="0.6")
    lower.set(ylabel="images", xlabel="confidence: probability of the prediction")
    for axis in (upper.xaxis, upper.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    return figure


def describe_reliability(predictions: Predictions) -> str:
    confidence, accuracy = predictions.confidence.mean().item(), predictions.correct.float().mean().item()
    return f"In this run, the mean confidence is {confidence:.1%} and the accuracy {accuracy:.1%}."


# Number of the file name, texts, and the functions that draw the figure and describe what it shows.
EVALUATION_FIGURES = (
    (0, CONFUSION_MATRIX, draw_confusion_matrix, describe_confusions),
    (0, WORST_CLASSES, draw_worst_classes, describe_classes),
    (1, CLASS_ACCURACY, draw_class_accuracy, describe_classes),
    (2, RELIABILITY, draw_reliability, describe_reliability),
)
