"""Stems: turn images into tokens by patches, shifted patches or convolutions."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN_WIDTH = 64  # of the convolutions before the last one; from the code of Hassani et al. 2021


class Stem(nn.Module):
    """Base of the stems: images `[B, C, H, W]` -> tokens `[B, N, D]`.

    In two steps, between which patches can be dropped: `cut` the images, and `project` what is left. Convolutions mix
    patches, so theirs are all in `cut`.
    """

    proj: nn.Conv2d | nn.Linear

    def cut(self, images: Tensor) -> Tensor:
        """Cut images `[B, C, H, W]` into patches, row by row: `[B, N, values]`."""
        raise NotImplementedError

    def project(self, patches: Tensor) -> Tensor:
        """Turn each patch into a token: `[B, n, values]` -> `[B, n, D]`."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        return self.project(self.cut(images))

    def initialise(self) -> None:
        """Draw weights that turn pixels of variance 1 into tokens of variance 1 (LeCun)."""
        nn.init.trunc_normal_(self.proj.weight, std=self.proj.weight[0].numel() ** -0.5)
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)

    def filters(self) -> Tensor:
        """Weights of the pixels in a token, or in the first convolution: `[D, C, height, width]`."""
        return self.proj.weight


class PatchEmbedding(Stem):
    """Cut images `[B, C, H, W]` into patches and project each to a token: `[B, N, D]`, row by row (Dosovitskiy et al.
    2021, section 3.1)."""

    def __init__(self, patch_size: tuple[int, int], in_channels: int, embed_dim: int) -> None:
        super().__init__()
        self.proj: nn.Conv2d = nn.Conv2d(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)

    def cut(self, images: Tensor) -> Tensor:
        return to_patches(images, self.proj.weight.shape[2:])

    def project(self, patches: Tensor) -> Tensor:
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)

    def forward(self, images: Tensor) -> Tensor:
        # In 16 bits a matrix product takes 0.5 to 0.8 of the time of the convolution, forward and backward, and in
        # float32 1.0 to 1.6 (vit_scratch, vit_small and ViT-B/16, one core of an AMD EPYC, Zen 5).
        if images.dtype.itemsize > 2 and not torch.is_autocast_enabled(images.device.type):
            return self.proj(images).flatten(2).transpose(1, 2)
        return super().forward(images)


def to_patches(images: Tensor, patch_size: Sequence[int]) -> Tensor:
    """Cut images `[B, C, H, W]` into patches, row by row: `[B, N, C * height * width]`."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size[0], width // patch_size[1]
    grid = images.reshape(batch, channels, rows, patch_size[0], columns, patch_size[1])
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * patch_size[0] * patch_size[1])


class ShiftedPatchTokenization(Stem):
    """Project each patch with the same patch of four diagonally shifted copies: images `[B, C, H, W]` -> `[B, N, D]`.

    The copies are shifted by half a patch, padded with zeros. The five patches are normalised together before the
    projection (Lee et al. 2021, "Vision Transformer for Small-Size Datasets", section 3, SPT).
    """

    def __init__(self, patch_size: tuple[int, int], in_channels: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.in_channels = in_channels
        values = 5 * in_channels * patch_size[0] * patch_size[1]
        self.norm = nn.LayerNorm(values)
        self.proj = nn.Linear(values, embed_dim)
        down, right = (side // 2 for side in patch_size)
        self.margin = (right, right, down, down)
        # Top left corners in the padded image: of the image itself, then of its copies.
        self.corners = ((down, right), (0, 0), (0, 2 * right), (2 * down, 0), (2 * down, 2 * right))

    def filters(self) -> Tensor:
        """Weights of the normalised pixels in a token, from half a patch around: `[D, C, height, width]`."""
        weight = (self.proj.weight * self.norm.weight).reshape(-1, 5, self.in_channels, *self.patch_size)
        down, right = self.corners[-1]
        parts = zip(weight.unbind(1), self.corners, strict=True)
        return torch.stack([F.pad(part, (x, right - x, y, down - y)) for part, (y, x) in parts]).sum(dim=0)

    def cut(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        padded = F.pad(images, self.margin)
        copies = torch.cat([padded[:, :, y : y + height, x : x + width] for y, x in self.corners], dim=1)
        return to_patches(copies, self.patch_size)

    def project(self, patches: Tensor) -> Tensor:
        return self.proj(self.norm(patches))


class ConvolutionalTokenizer(Stem):
    """Convolve and halve images until a token stands for a patch: images `[B, C, H, W]` -> `[B, N, D]`.

    Each step is a 3 x 3 convolution, a ReLU and a max pooling of stride 2: one for patches of 2 pixels (CCT-7/3x1), two
    for 4 (CCT-7/3x2). Hassani et al. 2021, "Escaping the Big Data Paradigm with Compact Transformers", section 3.
    """

    def __init__(self, patch_size: tuple[int, int], in_channels: int, embed_dim: int) -> None:
        super().__init__()
        side = patch_size[0]
        if patch_size != (side, side) or side < 2 or side.bit_count() > 1:
            raise ValueError(f"stem=conv halves the sides: patch_size={patch_size} must be 2, 4, 8 or a higher power")
        widths = [in_channels, *[HIDDEN_WIDTH] * (side.bit_length() - 2), embed_dim]
        convs = [nn.Conv2d(before, after, 3, padding=1, bias=False) for before, after in pairwise(widths)]
        self.convs = nn.Sequential(*convs)

    def initialise(self) -> None:
        for weight in self.convs.parameters():
            nn.init.kaiming_normal_(weight)

    def filters(self) -> Tensor:
        return next(self.convs.parameters())

    def cut(self, images: Tensor) -> Tensor:
        # The values of a pixel side by side, the layout that convolutions prefer: a step of vit_hybrid with patches of
        # 4 px is 1.06 (float32) to 1.09 (bfloat16) times as fast on one core of an AMD EPYC (Zen 4).
        x = images.contiguous(memory_format=torch.channels_last)
        for conv in self.convs:
            x = F.max_pool2d(conv(x).relu(), kernel_size=3, stride=2, padding=1)
        return x.flatten(2).transpose(1, 2)

    def project(self, patches: Tensor) -> Tensor:
        return patches  # the convolutions have made tokens of them


STEMS = {"patch": PatchEmbedding, "shifted": ShiftedPatchTokenization, "conv": ConvolutionalTokenizer}
