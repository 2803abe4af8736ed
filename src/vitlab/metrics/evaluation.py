"""Count the loss and the metrics of evaluated images, over batches and ranks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAUROC, MulticlassRecall
from torchmetrics.utilities import dim_zero_cat

from vitlab.metrics.kinds import METRICS, build_metrics


class MeanLoss(Metric):
    """The mean over images of a loss that is given as means over batches; unlike torchmetrics' MeanMetric it keeps
    NaNs, and never waits for the device to look for them."""

    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros(()), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        # precision=bf16-true converts metrics too, and in bfloat16 a sum soon stops growing.
        return super()._apply(lambda tensor: fn(tensor).to(tensor.dtype), exclude_state)

    def update(self, loss: Tensor, images: int) -> None:
        if images:  # a rank may have no image of a small last batch, and its mean is NaN
            self.total += loss.float() * images
            self.images += images

    def compute(self) -> Tensor:
        return self.total / self.images


class MeanRecall(MulticlassRecall):
    """The mean recall of the classes that have images, as scikit-learn's balanced accuracy."""

    tp: Tensor
    fn: Tensor

    def compute(self) -> Tensor:
        images = self.tp + self.fn
        return (self.tp / images.clamp(min=1)).sum() / (images > 0).sum()


class MeanAUROC(MulticlassAUROC):
    """The mean AUROC, each class against all others, of the classes that have images."""

    def __init__(self, num_classes: int, **options: Any) -> None:
        super().__init__(num_classes, average=None, **options)

    def compute(self) -> Tensor:  # type: ignore[override]
        images = torch.bincount(dim_zero_cat(self.target), minlength=self.num_classes)
        return super().compute()[images > 0].mean()


class EvaluationMetrics(nn.Module):
    """The loss and the metrics of evaluated images, counted over all ranks.

    Args:
        names: As the list `metrics` of a config.
    """

    def __init__(self, names: Sequence[Any], num_classes: int) -> None:
        super().__init__()
        self.loss = MeanLoss()
        self.metrics = nn.ModuleDict(build_metrics(names, num_classes))

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Adds the images of a batch, with the mean of their loss."""
        if not len(labels):  # a rank may have no image of a small last batch
            return
        self.loss.update(loss.detach(), len(labels))
        for name, metric in self.metrics.items():
            needs_softmax = name in METRICS and METRICS[name].of_probabilities
            metric.update(logits.softmax(dim=1) if needs_softmax else logits, labels)  # type: ignore[operator]

    def compute(self) -> dict[str, Tensor]:
        """The values by name, the same on all ranks, and forgets the images."""
        values = {}
        for name, metric in {"loss": self.loss, **dict(self.metrics.items())}.items():
            values[name] = metric.compute()  # type: ignore[operator]
            metric.reset()  # type: ignore[operator]
        return values


def rank_classes(logits: Tensor) -> Tensor:
    """Classes in order of falling logits, int64 `[B, classes]`; equal logits, common in bfloat16, keep the order of the
    classes, so that the first column is the prediction that accuracy counts."""
    return logits.argsort(dim=1, descending=True, stable=True)
