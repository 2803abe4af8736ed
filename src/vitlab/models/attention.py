"""Multi-head self-attention over the tokens of each image."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitlab.models.positions import rotate


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2.2): tokens `[B, N, D]` -> `[B, N, D]`.

    Args:
        embed_dim, num_heads: Width D of the tokens, a multiple of the number of heads.
        qk_norm: Apply a LayerNorm to each head's queries and keys (Dehghani et al. 2023, "Scaling Vision Transformers
            to 22 Billion Parameters", section 2).
        locality: Mask the attention of each token to itself, and let each head learn its softmax's inverse temperature,
            1 / sqrt(head_dim) at first (Lee et al. 2021, "Vision Transformer for Small-Size Datasets", section 3, LSA).
        attention_dropout, dropout: Dropout of the attention weights, and of the output.
        fused_attention: True uses torch's scaled_dot_product_attention, False two matrix products around a softmax,
            None the faster one (`fused_is_faster`). Both give the same result up to rounding.
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
        """Draw queries times keys near the identity, values times the projection near the negative identity, as in
        pretrained ViTs (Trockman and Kolter 2023, "Mimetic Initialization of Self-Attention Layers", section 3). Each
        head takes the best approximation of its rank."""
        dim = self.proj.in_features
        query, key, value = self.qkv.weight.chunk(3)
        for head in range(self.num_heads):
            rows = slice(head * self.head_dim, (head + 1) * self.head_dim)
            left, right = _factorise(0.7 * torch.randn(dim, dim) * dim**-0.5 + 0.7 * torch.eye(dim))
            query[rows], key[rows] = left[: self.head_dim], right[: self.head_dim]
        left, right = _factorise(0.4 * torch.randn(dim, dim) * dim**-0.5 - 0.4 * torch.eye(dim))
        value.copy_(left)
        self.proj.weight.copy_(right.T)

    def forward(
        self,
        x: Tensor,
        num_output_tokens: int | None = None,
        rotation: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Attend from the first `num_output_tokens` tokens (None: all) to all: `[B, N, D]` -> `[B, that many, D]`.

        Queries and keys turn by `rotation`, a table of `rotary2d`. `bias` (`RelativePositionBias`) is added to the
        scores.
        """
        query, key, value = project_qkv(self.qkv, x, self.num_heads, num_output_tokens)
        query, key = self.q_norm(query), self.k_norm(key)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        scale, mask = self.head_dim**-0.5, None
        if bias is not None:
            mask = bias[:, :, : query.shape[2]].to(value.dtype)
        if self.scale is not None:
            query, scale = query * self.scale.view(-1, 1, 1), 1.0
            itself = torch.eye(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
            mask = torch.zeros_like(itself, dtype=value.dtype) if mask is None else mask
            mask = mask.masked_fill(itself, -torch.inf)
        faster = fused_is_faster(value.device.type, value.dtype, value.shape[2])
        if bias is not None and value.device.type == "cpu" and torch.is_grad_enabled():
            faster = False  # torch has no fused kernel there for a mask that is learned
        fused = faster if self.fused_attention is None else self.fused_attention
        dropout = self.attention_dropout if self.training else 0.0
        query, key = query.to(value.dtype), key.to(value.dtype)
        x = attend(query, key, value, fused=fused, scale=scale, dropout=dropout, mask=mask)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))


def project_qkv(
    qkv: nn.Linear, x: Tensor, num_heads: int, num_output_tokens: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Project tokens `[B, N, D]` to queries (of the first `num_output_tokens` only), keys and values, each
    `[B, num_heads, N, head_dim]`."""
    batch, tokens, _ = x.shape  # a rank may have no image of a small last batch: no size can be left open
    head_dim = qkv.out_features // 3 // num_heads
    if num_output_tokens is None:
        query, key, value = qkv(x).reshape(batch, tokens, 3, num_heads, head_dim).unbind(2)
    else:
        width = qkv.out_features // 3
        bias = (None, None) if qkv.bias is None else (qkv.bias[:width], qkv.bias[width:])
        query = F.linear(x[:, :num_output_tokens], qkv.weight[:width], bias[0])
        query = query.reshape(batch, num_output_tokens, num_heads, head_dim)
        key, value = F.linear(x, qkv.weight[width:], bias[1]).reshape(batch, tokens, 2, num_heads, head_dim).unbind(2)
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, fused: bool, scale: float, dropout: float, mask: Tensor | None = None
) -> Tensor:
    """Average values by the attention of queries to keys, each `[B, heads, tokens, head_dim]`; `mask` is added to the
    scaled products."""
    if fused:
        # With a mask, cuDNN's kernel gives NaN gradients for extreme scores and 64 tokens (github.com/pytorch/pytorch
        # issue 196678).
        without_cudnn = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
        with sdpa_kernel(without_cudnn) if query.is_cuda and mask is not None else nullcontext():
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)
    scores = (query * scale) @ key.transpose(-2, -1)
    weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    return F.dropout(weights, dropout).to(value.dtype) @ value


def fused_is_faster(device_type: str, dtype: torch.dtype, tokens: int = 64) -> bool:
    """Whether torch's fused kernel trains faster than matrix products around a softmax, for so many tokens per image.

    Not with bfloat16 on a CPU: training `vit_scratch` is 1.8 times as fast plain on two cores with AMX, and 1.34 times
    with AVX512-BF16. In float32 the fused kernel is up to 14 % faster with many tokens (AVX2, 1,024) and needs less
    memory. With fewer than 64 tokens, as patch dropout leaves, plain attention is faster, forward and backward: 1.05 to
    1.37 times with 16 tokens, 1.04 to 1.22 times with 32 or 48, 0.98 to 1.11 times with 64 (widths of 128 to 384, two
    cores of an AMD EPYC, Zen 3). On GPUs the fused kernel never writes the N x N matrix to memory (Dao et al. 2022).
    """
    return device_type != "cpu" or (dtype != torch.bfloat16 and tokens >= 64)


def _factorise(product: Tensor) -> tuple[Tensor, Tensor]:
    """Split a matrix into two whose product, the first transposed, it is; their rows fall in norm."""
    left, values, right = torch.linalg.svd(product)
    return (left * values.sqrt()).T, values.sqrt().unsqueeze(1) * right
