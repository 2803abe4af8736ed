"""Measure how wrong logits are: the losses of the config group `loss`.

A loss is called with logits float32 `[B, classes]` and labels, int64 `[B]` or, after mixing, float32 `[B, classes]`. It
returns the scalar to minimise, a mean over the images. In eval mode it leaves out label smoothing: so it measures
validation and test images. To add one, write a class here and a file in `conf/loss/`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab.errors import UserError


class ClassLoss(nn.Module):
    """Base of losses that are a sum over the classes, each weighted.

    Args:
        label_smoothing: Fraction of the target spread over all classes (Szegedy et al. 2016, section 7), in training.
        class_weights: One number per class; None for equal ones. `balanced` in a config becomes `balanced_weights`.
    """

    class_weights: Tensor | None

    def __init__(self, label_smoothing: float = 0.0, class_weights: Sequence[float] | str | None = None) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)  # it is in the config

    def sharpen(self, target: Tensor) -> Tensor:
        """The target, `[B, classes]`, that is learned instead of a mixed one, before label smoothing."""
        return target

    def terms(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each image and class, `[B, classes]`; `target` are probabilities of the same shape."""
        raise NotImplementedError

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits, classes = logits.float(), logits.shape[1]  # also in mixed precision
        target = F.one_hot(labels, classes).float() if labels.ndim == 1 else labels.float()
        if self.class_weights is not None and len(self.class_weights) != classes:
            given = len(self.class_weights)
            raise UserError(f"loss.class_weights has {given} numbers: give {classes}, one for each class")
        # An image counts as much as its class, also for the other classes' terms.
        image_weights = 1.0 if self.class_weights is None else (target * self.class_weights.float()).sum(dim=1)
        target = self.sharpen(target)
        if self.training and self.label_smoothing:
            target = target * (1 - self.label_smoothing) + self.label_smoothing / classes
        return (self.terms(logits, target).sum(dim=1) * image_weights).mean()


class CrossEntropy(ClassLoss):
    """Cross-entropy of the softmax, in nats; with mixed labels it is that of the mixed distribution."""

    def terms(self, logits: Tensor, target: Tensor) -> Tensor:
        return -target * logits.log_softmax(dim=1)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.class_weights is None:  # one fused kernel
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing if self.training else 0.0)
        return super().forward(logits, labels)


class BinaryCrossEntropy(ClassLoss):
    """Binary cross-entropy of a sigmoid for each class, in nats, the mean over the classes (Wightman et al. 2021,
    "ResNet strikes back", section 2.1, for mixed labels).

    Args:
        target_threshold: Targets above it count as 1, others as 0; None keeps mixed targets.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | str | None = None,
        target_threshold: float | None = None,
    ) -> None:
        super().__init__(label_smoothing, class_weights)
        self.target_threshold = target_threshold

    def sharpen(self, target: Tensor) -> Tensor:
        return target if self.target_threshold is None else (target > self.target_threshold).to(target.dtype)

    def terms(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none") / logits.shape[1]


class Focal(ClassLoss):
    """Focal loss of the softmax, in nats: cross-entropy times (1 - p)^gamma, so that images that are classified well
    count less (Lin et al. 2017, section 3). With gamma=0 it is cross-entropy."""

    def __init__(
        self, gamma: float = 2.0, label_smoothing: float = 0.0, class_weights: Sequence[float] | str | None = None
    ) -> None:
        super().__init__(label_smoothing, class_weights)
        self.gamma = gamma

    def terms(self, logits: Tensor, target: Tensor) -> Tensor:
        log_p = logits.log_softmax(dim=1)
        return -target * (1 - log_p.exp()).clamp(min=0) ** self.gamma * log_p


def balanced_weights(labels: Tensor, num_classes: int) -> list[float]:
    """Class weights that let all classes count equally, `images / (classes * images of the class)`: their mean over the
    images is 1 (King and Zeng 2001; the rule of scikit-learn's `class_weight="balanced"`). UserError if a class has no
    image."""
    counts = torch.bincount(labels, minlength=num_classes)
    if not counts.all():
        raise UserError(
            f"loss.class_weights=balanced: {int((counts == 0).sum())} of {num_classes} classes have no training image; "
            "give a list of weights, or null"
        )
    return [round(weight, 6) for weight in (len(labels) / (num_classes * counts.double())).tolist()]
