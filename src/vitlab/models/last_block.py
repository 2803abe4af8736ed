"""The last block of ViTs whose head reads the class token: what nobody reads is not computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from timm.layers import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from vitlab.models.attention import attend, queries_keys_values


class LastBlock(nn.Module):
    """timm's pre-norm block for the head alone: tokens `[B, N, D]` -> `[B, read, D]`, the first ones.

    Parameters, their names, logits and gradients are those of the block. With `read` None it gives all tokens.
    """

    def __init__(self, block: Block, read: int) -> None:
        super().__init__()
        for name, module in block.named_children():
            self.add_module(name, module)
        self.read: int | None = read

    def forward(self, x: Tensor) -> Tensor:
        own: Any = self
        x = x[:, : self.read] + own.drop_path1(own.ls1(_attention(own.attn, own.norm1(x), self.read)))
        return x + own.drop_path2(own.ls2(own.mlp(own.norm2(x))))


def _attention(layer: Attention, x: Tensor, read: int | None) -> Tensor:
    query, key, value = queries_keys_values(layer.qkv, x, layer.num_heads, read)
    query, key = layer.q_norm(query).to(value.dtype), layer.k_norm(key).to(value.dtype)
    dropout = layer.attn_drop.p if layer.training else 0.0
    x = attend(query, key, value, fused=layer.fused_attn, scale=layer.scale, dropout=dropout)
    output: Tensor = layer.proj_drop(layer.proj(layer.norm(x.transpose(1, 2).flatten(2))))
    return output


def shorten_last_block(network: nn.Module) -> None:
    """Puts a `LastBlock` into timm's plain and distilled ViTs, in place, where the head reads no patch; leaves other
    networks as they are."""
    if type(network) not in (VisionTransformer, VisionTransformerDistilled) or network.global_pool != "token":
        return
    blocks: Any = network.blocks
    last = blocks[-1]
    if type(last) is Block and type(last.attn) is Attention and last.attn.gate is None:
        blocks[-1] = LastBlock(last, read=2 if isinstance(network, VisionTransformerDistilled) else 1)


@contextmanager
def all_tokens(network: nn.Module) -> Iterator[None]:
    """Meanwhile, the last block of timm's or ours computes all tokens."""
    last: Any = list(getattr(network, "blocks", [None]))[-1]
    read = getattr(last, "read", None)
    if read is None:
        yield
        return
    last.read = None
    try:
        yield
    finally:
        last.read = read
