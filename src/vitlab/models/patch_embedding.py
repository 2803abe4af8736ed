"""From images to tokens: what `stem` chooses from."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN_WIDTH = 64  # of the convolutions before the last one; as in the code of Hassani et al. 2021


class PatchEmbedding(nn.Module):
    """Cuts images `[B, C, H, W]` into patches and projects each to a token: `[B, N, D]`, row by row.

    A convolution whose stride is its kernel size is the linear projection of the flattened patches (Dosovitskiy et al.
    2021, section 3.1).
    """

    def __init__(self, patch_size: tuple[int, int], in_channels: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)

    def initialise(self) -> None:
        _lecun(self.proj)

    def filters(self) -> Tensor:
        """What a token is of the pixels, `[D, C, height, width]`."""
        return self.proj.weight

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class ShiftedPatchTokenization(nn.Module):
    """Patches of an image and of its four copies that are shifted by half a patch along the diagonals, all at one place
    normalised and projected to a token: images `[B, C, H, W]` -> `[B, N, D]`.

    Lee et al. 2021, "Vision Transformer for Small-Size Datasets", section 3 (SPT). What a shift brings in is zero.
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
        # Top left corners in the image with its margin: of the image itself, then of its copies.
        self.corners = ((down, right), (0, 0), (0, 2 * right), (2 * down, 0), (2 * down, 2 * right))

    def initialise(self) -> None:
        _lecun(self.proj)

    def filters(self) -> Tensor:
        """What a token is of the normalised pixels, its patch and half a patch around: `[D, C, height, width]`."""
        weight = (self.proj.weight * self.norm.weight).reshape(-1, 5, self.in_channels, *self.patch_size)
        down, right = self.corners[-1]
        placed = [
            F.pad(part, (x, right - x, y, down - y))
            for part, (y, x) in zip(weight.unbind(1), self.corners, strict=True)
        ]
        return torch.stack(placed).sum(dim=0)

    def forward(self, images: Tensor) -> Tensor:
        batch, _, height, width = images.shape
        padded = F.pad(images, self.margin)
        copies = torch.cat([padded[:, :, y : y + height, x : x + width] for y, x in self.corners], dim=1)
        rows, columns = height // self.patch_size[0], width // self.patch_size[1]
        grid = copies.reshape(batch, -1, rows, self.patch_size[0], columns, self.patch_size[1])
        patches = grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)
        return self.proj(self.norm(patches))


class ConvolutionalTokenizer(nn.Module):
    """Convolutions of 3 x 3 pixels, each with a ReLU and a max pooling that halves the sides: images `[B, C, H, W]` ->
    tokens `[B, N, D]`.

    Hassani et al. 2021, "Escaping the Big Data Paradigm with Compact Transformers", section 3. There are as many as
    it takes until a token stands for a patch: one for patches of 2 pixels (CCT-7/3x1), two for 4 (CCT-7/3x2).

    Raises:
        ValueError: the patches are not squares, or their side is no power of 2 from 2 on.
    """

    def __init__(self, patch_size: tuple[int, int], in_channels: int, embed_dim: int) -> None:
        super().__init__()
        side = patch_size[0]
        if patch_size != (side, side) or side < 2 or side.bit_count() > 1:
            raise ValueError(f"stem=conv halves the sides: patch_size={patch_size} must be 2, 4, 8 or a higher power")
        widths = [in_channels, *[HIDDEN_WIDTH] * (side.bit_length() - 2), embed_dim]
        self.convs = nn.Sequential(
            *(nn.Conv2d(before, after, kernel_size=3, padding=1, bias=False) for before, after in pairwise(widths))
        )

    def initialise(self) -> None:
        for weight in self.convs.parameters():
            nn.init.kaiming_normal_(weight)

    def filters(self) -> Tensor:
        """What the first convolution is of the pixels, `[width, C, 3, 3]`."""
        return next(self.convs.parameters())

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for conv in self.convs:
            x = F.max_pool2d(conv(x).relu(), kernel_size=3, stride=2, padding=1)
        return x.flatten(2).transpose(1, 2)


Stem = PatchEmbedding | ShiftedPatchTokenization | ConvolutionalTokenizer
STEMS: dict[str, type[Stem]] = {
    "patch": PatchEmbedding,
    "shifted": ShiftedPatchTokenization,
    "conv": ConvolutionalTokenizer,
}


def _lecun(layer: nn.Conv2d | nn.Linear) -> None:
    """Pixels of variance 1 give tokens of variance 1."""
    nn.init.trunc_normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
