"""Fixed position embeddings."""

import torch
from torch import Tensor


def sincos2d(embed_dim: int, grid_size: tuple[int, int], temperature: float = 10_000.0) -> Tensor:
    """Sines and cosines of a patch's row and column, `[1, rows * columns, embed_dim]`, float32.

    A quarter of the channels each: sin and cos of the column, sin and cos of the row, at geometrically spaced
    frequencies (Beyer et al. 2022, "Better plain ViT baselines for ImageNet-1k").

    Raises:
        ValueError: `embed_dim` is not a multiple of 4.
    """
    if embed_dim % 4:
        raise ValueError(f"pos_embed=sincos2d needs embed_dim to be a multiple of 4, not {embed_dim}")
    rows, columns = torch.meshgrid(
        torch.arange(grid_size[0], dtype=torch.float32), torch.arange(grid_size[1], dtype=torch.float32), indexing="ij"
    )
    quarter = embed_dim // 4
    frequencies = temperature ** (-torch.arange(quarter, dtype=torch.float32) / max(quarter - 1, 1))
    x = columns.reshape(-1, 1) * frequencies
    y = rows.reshape(-1, 1) * frequencies
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).unsqueeze(0)
