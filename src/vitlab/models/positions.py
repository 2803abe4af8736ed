"""Positions of patches: fixed embeddings, and rotations of queries and keys."""

import torch
import torch.nn.functional as F
from timm.layers import RotaryEmbeddingCat, apply_rot_embed_cat
from torch import Tensor


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


def rows_of_kept(table: Tensor, kept: Tensor, prefix: int) -> Tensor:
    """Choose the rows of the tokens that patch dropout keeps, int64 indices of patches `[B, n]`, from a table of all
    tokens, `[prefix + N, D]`: `[B, prefix + n, D]`."""
    first = torch.arange(prefix, device=kept.device).expand(len(kept), -1)
    return F.embedding(torch.cat([first, kept + prefix], dim=1), table)
