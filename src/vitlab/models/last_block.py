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

    Parameters, their names, logits and gradients are those of timm's `Block` and `Attention` (timm 1.0.31). With `read`
    None it gives all tokens.
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
    query, key = layer.q_norm(query), layer.k_norm(key)
    dropout = layer.attn_drop.p if layer.training else 0.0
    x = attend(query, key, value, fused=layer.fused_attn, scale=layer.scale, dropout=dropout)
    output: Tensor = layer.proj_drop(layer.proj(layer.norm(x.transpose(1, 2).flatten(2))))
    return output


def shorten_last_block(network: nn.Module) -> None:
    """Puts a `LastBlock` into timm's plain and distilled ViTs, in place, where the head reads no patch; leaves other
    networks as they are.

    Whoever then wants patches from timm's `forward_features` or `forward_intermediates` asks within `full_output`;
    another pooling (`reset_classifier`) needs a network that is whole.
    """
    if type(network) not in (VisionTransformer, VisionTransformerDistilled) or network.global_pool != "token":
        return
    blocks: Any = network.blocks
    for last in blocks[-1:]:
        if type(last) is Block and type(last.attn) is Attention:
            blocks[-1] = LastBlock(last, read=2 if isinstance(network, VisionTransformerDistilled) else 1)


def shortened(network: nn.Module) -> Any | None:
    """The last block, of timm's or ours, where it computes only what the head reads."""
    blocks: Any = getattr(network, "blocks", [])
    return next((last for last in blocks[-1:] if getattr(last, "read", None) is not None), None)


@contextmanager
def full_output(network: nn.Module) -> Iterator[None]:
    """Meanwhile, the last block computes all tokens."""
    last = shortened(network)
    if last is None:
        yield
        return
    read, last.read = last.read, None
    try:
        yield
    finally:
        last.read = read
