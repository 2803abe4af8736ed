"""Multi-head self-attention over the tokens of each image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2.2), tokens `[B, N, D]` -> `[B, N, D]`.

    With `qk_norm`, queries and keys pass a LayerNorm over each head's channels before their product
    (Dehghani et al. 2023, "Scaling Vision Transformers to 22 Billion Parameters", section 2).

    `fused_attention` chooses the kernel: True is torch's scaled_dot_product_attention, False is two matrix products
    around a softmax, None takes the one that trains faster on the device at hand. Both give the same result to within
    the precision. What None stands on: training steps of this ViT at 32 px (65 tokens or fewer, batch 128) on two CPU
    cores, images a second, plain : fused = 325 : 176 (bfloat16) and 136 : 140 (float32) with AMX, 152 : 127 and 87 : 81
    with AVX512-BF16, so plain on a CPU; on a GPU the fused kernels never write the N x N matrix to memory.

    Raises:
        ValueError: `embed_dim` is not a multiple of `num_heads`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        qk_norm: bool = False,
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
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)  # each [B, heads, N, head_dim]
        query, key = self.q_norm(query).to(value.dtype), self.k_norm(key).to(value.dtype)
        x = self._attend(query, key, value).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(x))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        dropout = self.attention_dropout if self.training else 0.0
        fused = query.device.type != "cpu" if self.fused_attention is None else self.fused_attention
        if fused:
            return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        weights = torch.softmax((query * self.head_dim**-0.5) @ key.transpose(-2, -1), dim=-1)
        return F.dropout(weights, dropout).to(value.dtype) @ value
