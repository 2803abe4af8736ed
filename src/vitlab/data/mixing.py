"""MixUp and CutMix: mix the images of a batch and their labels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from vitlab.data.counter_rng import fork_batch_rng


class Mixing(nn.Module):
    """Mix each image of a batch with the previous one: mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019).

    As in torchvision, whose transforms do the mixing, the whole batch gets the same method, weight and box.

    Args:
        p: Fraction of the batches that are mixed.
        mixup_alpha, cutmix_alpha: The weight of the image, for CutMix the fraction of the area that stays, is drawn
            from Beta(alpha, alpha). 1 is uniform; smaller values keep mostly one image.
        cutmix_share: Fraction of the mixed batches that get CutMix; the others get mixup.
        off_share: Fraction of the run, at its end, without mixing.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self, *, p: float, mixup_alpha: float, cutmix_alpha: float, cutmix_share: float, off_share: float
    ) -> None:
        super().__init__()
        if not (min(p, cutmix_share, off_share) >= 0 and max(p, cutmix_share, off_share) <= 1):
            raise ValueError(f"Mixing: p={p}, cutmix_share={cutmix_share} and off_share={off_share} must be 0 to 1")
        if min(mixup_alpha, cutmix_alpha) <= 0:
            raise ValueError(f"Mixing: mixup_alpha={mixup_alpha} and cutmix_alpha={cutmix_alpha} must be above 0")
        self.p = p
        self.cutmix_share = cutmix_share
        self.off_share = off_share
        self.mixup = v2.MixUp(alpha=float(mixup_alpha))  # torchvision accepts no integers
        self.cutmix = v2.CutMix(alpha=float(cutmix_alpha))

    def is_on(self, progress: float) -> bool:
        """Whether batches may be mixed after this fraction of the run."""
        return progress < 1 - self.off_share

    def forward(
        self, images: Tensor, labels: Tensor, *, classes: int, seed: int, epoch: int, number: int
    ) -> tuple[Tensor, Tensor]:
        """Mix float images `[B, 3, H, W]` and int64 labels `[B]`, which become float32 `[B, classes]`.

        The run's seed, the epoch and the batch's number in it decide all random numbers, also whether the batch is
        mixed; otherwise it is returned as it is.
        """
        with fork_batch_rng(seed, epoch, number):
            mix = self._draw_kind()
            if mix is None:
                return images, labels
            mixed: tuple[Tensor, Tensor] = mix(images, F.one_hot(labels, classes).float())
        return mixed

    def _draw_kind(self) -> v2.MixUp | v2.CutMix | None:
        mixes, cuts = torch.rand(2).tolist()
        if mixes >= self.p:
            return None
        return self.cutmix if cuts < self.cutmix_share else self.mixup


def main_class(labels: Tensor) -> Tensor:
    """int64 `[B]`: the labels, or for mixed labels (float `[B, classes]`) the class with the largest weight."""
    return labels.argmax(dim=1) if labels.is_floating_point() else labels
