"""Images of a batch mixed with each other, and their labels in the same shares."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from vitlab.data.counter_rng import draws_of_batch


class Mixing(nn.Module):
    """mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019) of each image of a batch with the one before it.

    One kind, one share and one box hold for a batch, by torchvision's transforms of these names.

    Args:
        p: Share of the batches that are mixed.
        mixup_alpha: Of Beta(alpha, alpha), from which mixup draws the image's share. 1: all shares alike; less: mostly
            one image.
        cutmix_alpha: The same of CutMix, where it is the share of the area that stays.
        cutmix_share: Of the mixed batches; the others get mixup.
        off_share: Of a run: its last part, which is not mixed.

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
        self.mixup = v2.MixUp(alpha=float(mixup_alpha))  # torchvision takes no integers
        self.cutmix = v2.CutMix(alpha=float(cutmix_alpha))

    def is_on(self, progress: float) -> bool:
        """Whether batches may be mixed when such a share of the run, from 0 to 1, is over."""
        return progress < 1 - self.off_share

    def forward(
        self, images: Tensor, labels: Tensor, *, classes: int, seed: int, epoch: int, number: int
    ) -> tuple[Tensor, Tensor]:
        """The mixed batch, or the same one where it is its turn to stay.

        Args:
            images: Float `[B, 3, H, W]`.
            labels: int64 `[B]`; of a mixed batch they become float32 `[B, classes]`.
            classes: There are so many.
            seed: Of the run.
            epoch, number: Of the batch, which decide with the seed what is drawn.
        """
        with draws_of_batch(seed, epoch, number):
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
    """int64 `[B]`: labels as they are, or of mixed ones, float `[B, classes]`, the class with the largest share."""
    return labels.argmax(dim=1) if labels.is_floating_point() else labels
