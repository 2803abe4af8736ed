"""What a network said to labelled images, and the numbers that follow."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

BINS = 15  # of the confidences, as in Guo et al. 2017, "On calibration of modern neural networks"


@dataclass(frozen=True)
class Outcome:
    """Answers to `N` images.

    Attributes:
        probabilities: float32 `[N, classes]`.
        predictions: int64 `[N]`, the class that counts as the answer.
        labels: int64 `[N]`.
        classes: Names.
    """

    probabilities: Tensor
    predictions: Tensor
    labels: Tensor
    classes: Sequence[str]

    @cached_property
    def correct(self) -> Tensor:
        return self.predictions == self.labels

    @cached_property
    def confidence(self) -> Tensor:
        """The answers' probabilities, `[N]`."""
        return self.probabilities.gather(1, self.predictions[:, None])[:, 0]

    @cached_property
    def of_truth(self) -> Tensor:
        """The true classes' probabilities, `[N]`."""
        return self.probabilities.gather(1, self.labels[:, None])[:, 0]

    @cached_property
    def confusions(self) -> Tensor:
        """Images by true class (row) and answer (column), int64 `[classes, classes]`."""
        return multiclass_confusion_matrix(self.predictions, self.labels, len(self.classes))

    @cached_property
    def recall(self) -> Tensor:
        """The share of each class's images that is recognised, `[classes]`; NaN without images."""
        return self.confusions.diag() / self.confusions.sum(dim=1)

    @cached_property
    def calibration_error(self) -> float:
        """ECE: mean distance of confidence and accuracy over `BINS` bins of the confidence, weighted by images."""
        return multiclass_calibration_error(self.probabilities, self.labels, len(self.classes), n_bins=BINS).item()

    @cached_property
    def bins(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of each of `BINS` equal bins of the confidence: images, mean confidence, accuracy (NaN without images)."""
        place = torch.bucketize(self.confidence, torch.linspace(0, 1, BINS + 1)[1:-1], right=True)
        count = torch.bincount(place, minlength=BINS)
        sums = (
            torch.zeros(BINS).index_add(0, place, values) for values in (self.confidence.float(), self.correct.float())
        )
        confidence, accuracy = (total / count for total in sums)
        return count, confidence, accuracy

    def confused_pairs(self, most: int = 3) -> list[tuple[str, str, int]]:
        """(true class, answer, images) of the most frequent mistakes."""
        wrong = self.confusions.clone().fill_diagonal_(0)
        places = wrong.flatten().argsort(descending=True, stable=True)[:most].tolist()
        width = len(self.classes)
        return [
            (self.classes[p // width], self.classes[p % width], int(wrong.flatten()[p]))
            for p in places
            if wrong.flatten()[p] > 0
        ]

    def as_data(self) -> dict[str, Any]:
        """What `test_details.json` holds."""
        counts = self.confusions.sum(dim=1).tolist()
        answers = self.confusions.sum(dim=0).tolist()
        recall = [None if count == 0 else share for share, count in zip(self.recall.tolist(), counts, strict=True)]
        return {
            "images": len(self.labels),
            "accuracy": self.correct.float().mean().item(),
            "confidence": self.confidence.mean().item(),
            "calibration_error": self.calibration_error,
            "per_class": {
                name: {"images": count, "answers": said, "acc": share}
                for name, count, said, share in zip(self.classes, counts, answers, recall, strict=True)
            },
            "most_confused": [
                {"class": true, "taken_for": said, "images": images} for true, said, images in self.confused_pairs()
            ],
        }
