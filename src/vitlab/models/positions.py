"""Positions of patches: fixed embeddings, rotations, and learned biases."""

import torch
import torch.nn.functional as F
from timm.layers import RotaryEmbeddingCat, apply_rot_embed_cat, gen_relative_position_index
from torch import Tensor, nn


def sincos2d(embed_dim: int, grid_size: tuple[int, int], temperature: float = 10_000.0) -> Tensor:
    """Compute fixed position embeddings from each patch's row and column: float32 `[1, rows * columns, embed_dim]`.

    A quarter of the channels each: sin and cos of the column, sin and cos of the row, at geometrically spaced
    frequencies (Beyer et al. 2022, "Better plain ViT baselines for ImageNet-1k").
    """
    if embed_dim % 4:
        raise ValueError(f"pos_embed=sincos2d needs embed_dim to be a multiple of 4, not {embed_dim}")
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in grid_size), indexing="ij")
    quarter = embed_dim // 4
    frequencies = temperature ** (-torch.arange(quarter, dtype=torch.float32) / max(quarter - 1, 1))
    x = columns.reshape(-1, 1) * frequencies
    y = rows.reshape(-1, 1) * frequencies
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).unsqueeze(0)


def rotary2d(head_dim: int, grid_size: tuple[int, int], prefix: int = 0) -> Tensor:
    """Compute how far the channels of each token's queries and keys turn: sines, then cosines, float32
    `[prefix + rows * columns, 2 * head_dim]`.

    Half of the pairs of channels turn with the patch's row, half with its column, by 1 to about 1/100 radian per patch,
    so that a product of query and key depends on the distance of their patches (Heo et al. 2024, "Rotary Position
    Embedding for Vision Transformer", section 3, axial frequencies; the table is timm's). The first `prefix` tokens
    have no position and do not turn.
    """
    if head_dim % 4:
        raise ValueError(f"rotary=true needs embed_dim / num_heads to be a multiple of 4, not {head_dim}")
    patches = RotaryEmbeddingCat(
        head_dim, in_pixels=False, temperature=100.0, feat_shape=list(grid_size), rotate_half=True
    ).get_embed()
    still = torch.tensor([0.0, 1.0]).repeat_interleave(head_dim).expand(prefix, -1)
    return torch.cat([still, patches])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn queries or keys `[B, heads, n, head_dim]` by the first `n` rows of a `rotary2d` table, `[N, ...]` for all
    images or `[B, 1, N, ...]`."""
    return apply_rot_embed_cat(x, rotation[..., : x.shape[2], :], half=True)


class RelativePositionBias(nn.Module):
    """Relative position biases: learned numbers that each head adds to its attention scores, one for each distance in
    rows and columns from the query's patch to the key's (Liu et al. 2021, "Swin Transformer", equation 4).

    All blocks share them, as in timm's `vit_relpos_*`. Tokens without a place, the class token and registers, get none.
    The numbers begin as the distance times a slope: from -1 for the first head, so that it prefers near patches, to 0
    for the last (as Press et al. 2022, "Train Short, Test Long", section 3, but in two dimensions, and learned).
    """

    index: Tensor

    def __init__(self, grid_size: tuple[int, int], num_heads: int, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix
        rows, columns = (torch.arange(1.0 - side, side) for side in grid_size)
        distances = torch.cartesian_prod(rows, columns).norm(dim=1)
        self.table = nn.Parameter(distances.unsqueeze(1) * -torch.linspace(1, 0, num_heads))
        self.register_buffer("index", gen_relative_position_index(grid_size), persistent=False)

    def forward(self, kept: Tensor | None) -> Tensor:
        """Return the bias of each query and key, `[1, heads, N, N]`, or, among the patches that patch dropout keeps
        (int64 `[B, n]`), `[B, heads, n, n]`; N and n include the prefix."""
        index = self.index.unsqueeze(0) if kept is None else self.index[kept.unsqueeze(2), kept.unsqueeze(1)]
        bias = F.embedding(index, self.table).movedim(-1, 1).contiguous()
        return F.pad(bias, (self.prefix, 0, self.prefix, 0)) if self.prefix else bias


def rows_of_kept(table: Tensor, kept: Tensor, prefix: int) -> Tensor:
    """Choose the rows of the tokens that patch dropout keeps, int64 indices of patches `[B, n]`, from a table of all
    tokens, `[prefix + N, D]`: `[B, prefix + n, D]`."""
    first = torch.arange(prefix, device=kept.device).expand(len(kept), -1)
    return F.embedding(torch.cat([first, kept + prefix], dim=1), table)
