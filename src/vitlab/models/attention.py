"""Multi-head self-attention over the tokens of each image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2.2), tokens `[B, N, D]` -> `[B, N, D]`.

    With `qk_norm`, queries and keys pass a LayerNorm over each head's channels before their product
    (Dehghani et al. 2023, "Scaling Vision Transformers to 22 Billion Parameters", section 2).

    With `locality`, no token attends to itself, and each head learns the factor, 1 / sqrt(head_dim) at first, by which
    the products of queries and keys are multiplied (the inverse temperature of the softmax): Lee et al. 2021, "Vision
    Transformer for Small-Size Datasets", section 3 (LSA).

    `fused_attention` chooses the kernel: True uses torch's scaled_dot_product_attention, False two matrix products
    around a softmax. None uses the latter for bfloat16 on a CPU, where it trains faster, else the fused kernel, which
    in float32 is about as fast or faster and needs less memory. Both give the same result up to rounding. Training
    steps of `vit_scratch` on two CPU cores, images/s (`python -m vitlab.bench name=attention`, up to commit 5cc8223):

    | CPU with | dtype | tokens | plain | fused |
    |---|---|---|---|---|
    | AMX | bfloat16 | 64 | 325 | 176 |
    | AVX512-BF16 | bfloat16 | 64 | 146 | 109 |
    | AVX512-BF16 | bfloat16 | 256 | 30.6 | 24.7 |
    | AVX512-BF16 | bfloat16 | 1,024 | 4.65 | 3.70 |
    | AMX | float32 | 64 | 136 | 140 |
    | AVX512-BF16 | float32 | 64 | 84.7 | 86.8 |
    | AVX512-BF16 | float32 | 256 | 18.0 | 18.2 |
    | AVX512-BF16 | float32 | 1,024 | 2.80 | 2.78 |
    | AVX2 | float32 | 64 | 54.8 | 59.2 |
    | AVX2 | float32 | 256 | 12.3 | 12.9 |
    | AVX2 | float32 | 1,024 | 1.77 | 2.02 |

    In float32 the fused kernel also takes 0.25 GB less at 64 tokens and batches of 128. No GPU was measured: there the
    fused kernels never write the N x N matrix to memory (Dao et al. 2022).

    `forward` takes how many tokens, from the first on, are read afterwards: `[B, N, D]` -> `[B, read, D]`; None means
    all.

    Raises:
        ValueError: `embed_dim` is not a multiple of `num_heads`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        qk_norm: bool = False,
        locality: bool = False,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
        fused_attention: bool | None = None,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim={embed_dim} is not a multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.attention_dropout = attention_dropout
        self.fused_attention = fused_attention
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.q_norm = nn.LayerNorm(self.head_dim, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim, eps=1e-6) if qk_norm else nn.Identity()
        self.scale = nn.Parameter(torch.full((num_heads,), self.head_dim**-0.5)) if locality else None
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.proj_drop = nn.Dropout(dropout)

    @torch.no_grad()
    def initialise_mimetically(self) -> None:
        """Draws weights whose products are like those of pretrained ViTs: queries with keys near to the identity, so
        that a token attends to what is like it, with sincos2d positions to its neighbours; values with the projection
        near to the negative identity.

        Trockman and Kolter 2023, "Mimetic Initialization of Self-Attention Layers", section 3. A head takes the best
        approximation that it has the rank for.
        """
        dim = self.proj.in_features
        query, key, value = self.qkv.weight.chunk(3)
        for head in range(self.num_heads):
            rows = slice(head * self.head_dim, (head + 1) * self.head_dim)
            left, right = _factors(0.7 * torch.randn(dim, dim) * dim**-0.5 + 0.7 * torch.eye(dim))
            query[rows], key[rows] = left[: self.head_dim], right[: self.head_dim]
        left, right = _factors(0.4 * torch.randn(dim, dim) * dim**-0.5 - 0.4 * torch.eye(dim))
        value.copy_(left)
        self.proj.weight.copy_(right.T)

    def forward(self, x: Tensor, read: int | None = None) -> Tensor:
        query, key, value = queries_keys_values(self.qkv, x, self.num_heads, read)
        query, key = self.q_norm(query), self.k_norm(key)
        if self.scale is not None:
            query = query * self.scale.view(-1, 1, 1)
        x = self._attend(query.to(value.dtype), key.to(value.dtype), value).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(x))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        dropout = self.attention_dropout if self.training else 0.0
        fused = self.fused_attention
        if fused is None:
            fused = fused_is_faster(value.device.type, value.dtype)
        scale, mask = self.head_dim**-0.5, None
        if self.scale is not None:  # is in the queries
            scale = 1.0
            itself = torch.eye(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
            mask = torch.zeros_like(itself, dtype=query.dtype).masked_fill(itself, -torch.inf)
        return attend(query, key, value, fused=fused, scale=scale, dropout=dropout, mask=mask)


def queries_keys_values(qkv: nn.Linear, x: Tensor, num_heads: int, read: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Of tokens `[B, N, D]`, each `[B, num_heads, N, head_dim]`; queries of the first `read` tokens alone."""
    batch, tokens, _ = x.shape
    if read is None:
        query, key, value = qkv(x).reshape(batch, tokens, 3, num_heads, -1).unbind(2)
    else:
        width = qkv.out_features // 3
        bias = (None, None) if qkv.bias is None else (qkv.bias[:width], qkv.bias[width:])
        query = F.linear(x[:, :read], qkv.weight[:width], bias[0]).reshape(batch, read, num_heads, -1)
        key, value = F.linear(x, qkv.weight[width:], bias[1]).reshape(batch, tokens, 2, num_heads, -1).unbind(2)
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    fused: bool,
    scale: float,
    dropout: float,
    mask: Tensor | None = None,
) -> Tensor:
    """The values' mean as queries and keys `[B, heads, tokens, head_dim]` weigh them, by either kernel of
    `SelfAttention`; `mask` is added to the scaled products."""
    if fused:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)
    scores = (query * scale) @ key.transpose(-2, -1)
    weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    return F.dropout(weights, dropout).to(value.dtype) @ value


def fused_is_faster(device_type: str, dtype: torch.dtype) -> bool:
    """Whether torch's fused kernel trains faster than matrix products around a softmax: see `SelfAttention`."""
    return device_type != "cpu" or dtype != torch.bfloat16


def _factors(product: Tensor) -> tuple[Tensor, Tensor]:
    """Two matrices, the first transposed times the second being `product`, their rows in falling order of norm."""
    left, values, right = torch.linalg.svd(product)
    return (left * values.sqrt()).T, values.sqrt().unsqueeze(1) * right
