"""Predictions on labelled images, and the statistics computed from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

BINS = 15  # of the confidence, as in Guo et al. 2017, "On calibration of modern neural networks"


@dataclass(frozen=True)
class Predictions:
    """Predictions on `N` labelled images.

    Attributes:
        probabilities: float32 `[N, classes]`.
        predicted: int64 `[N]`, the predicted classes.
        labels: int64 `[N]`, the true classes.
        classes: Class names.
    """

    probabilities: Tensor
    predicted: Tensor
    labels: Tensor
    classes: Sequence[str]

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

    def as_data(self) -> dict[str, Any]:
        """The content of `test_details.json`."""
        images, answers = (self.confusion_matrix.sum(dim=dim).tolist() for dim in (1, 0))
        return {
            "images": len(self.labels),
            "accuracy": self.correct.float().mean().item(),
            "confidence": self.confidence.mean().item(),
            "calibration_error": self.calibration_error,
            "per_class": {
                name: {"images": count, "answers": predicted, "acc": recall if count else None}
                for name, count, predicted, recall in zip(
                    self.classes, images, answers, self.recall.tolist(), strict=True
                )
            },
            "most_confused": [
                {"class": true, "taken_for": predicted, "images": images}
                for true, predicted, images in self.confused_pairs()
            ],
        }
