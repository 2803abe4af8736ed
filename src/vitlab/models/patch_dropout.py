"""Patch dropout that keeps patches from all parts of an image."""

import torch
from timm.layers import PatchDropoutWithIndices
from torch import Tensor


class SpreadPatchDropout(PatchDropoutWithIndices):
    """Drop a fraction `prob` of an image's patches in training: `[B, N, D]` -> `[B, n, D]`.

    Also returns the indices of the kept patches, int64 `[B, n]`, or None if all are kept.

    The choice is random, as in timm's `PatchDropoutWithIndices` (Liu et al. 2022, "PatchDropout: Economizing Vision
    Transformers Using Patch Dropout", section 3). But each block of 2 x 2 patches loses as many as the others, or one
    more, so that no large part of an image is missing: the grid-wise sampling of He et al. 2022, "Masked Autoencoders
    Are Scalable Vision Learners", section 4.1, with a random choice in each block. If a side of the grid is odd,
    patches are dropped anywhere, as in timm's.
    """

    def __init__(self, prob: float, grid_size: tuple[int, int]) -> None:
        super().__init__(prob, num_prefix_tokens=0)
        self.grid_size = grid_size

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.training or self.prob == 0:
            return x, None
        kept = self._random_order(len(x), x.device)[:, : max(1, int(x.shape[1] * (1 - self.prob)))]
        return x.gather(1, kept.unsqueeze(-1).expand(-1, -1, x.shape[-1])), kept

    def _random_order(self, images: int, device: torch.device) -> Tensor:
        """Order the patches at random, int64 `[images, N]`: first one of each block, then another one of each ..."""
        rows, columns = self.grid_size
        numbers = torch.rand(images, rows, columns, device=device)
        if rows % 2 or columns % 2:
            return numbers.flatten(1).argsort(1)
        # Sort by the rank within the block (argsort twice); the random number orders patches of equal rank.
        blocks = numbers.unfold(1, 2, 2).unfold(2, 2, 2)  # [images, rows / 2, columns / 2, 2, 2]
        ranks = blocks.flatten(3).argsort(-1).argsort(-1).view_as(blocks).transpose(2, 3).reshape_as(numbers)
        return (ranks + numbers).flatten(1).argsort(1)
