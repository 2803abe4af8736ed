"""Skip unused tokens in the last block of ViTs whose head reads the class token."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from timm.layers import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from vitlab.models.attention import attend, project_qkv


class LastBlock(nn.Module):
    """timm's pre-norm block, with only the first output tokens: `[B, N, D]` -> `[B, num_output_tokens, D]`.

    Parameters, their names, logits and gradients are those of timm's `Block` and `Attention` (timm 1.0.31). If
    `num_output_tokens` is None, it computes all tokens.
    """

    def __init__(self, block: Block, num_output_tokens: int) -> None:
        super().__init__()
        for name, module in block.named_children():
            self.add_module(name, module)
        self.num_output_tokens: int | None = num_output_tokens

    def forward(self, x: Tensor) -> Tensor:
        own: Any = self
        count = self.num_output_tokens
        x = x[:, :count] + own.drop_path1(own.ls1(_attention(own.attn, own.norm1(x), count)))
        return x + own.drop_path2(own.ls2(own.mlp(own.norm2(x))))


def _attention(layer: Attention, x: Tensor, num_output_tokens: int | None) -> Tensor:
    query, key, value = project_qkv(layer.qkv, x, layer.num_heads, num_output_tokens)
    query, key = layer.q_norm(query), layer.k_norm(key)
    dropout = layer.attn_drop.p if layer.training else 0.0
    x = attend(query, key, value, fused=layer.fused_attn, scale=layer.scale, dropout=dropout)
    output: Tensor = layer.proj_drop(layer.proj(layer.norm(x.transpose(1, 2).flatten(2))))
    return output


def shorten_last_block(network: nn.Module) -> None:
    """Put a `LastBlock` into timm's plain and distilled ViTs, in place, if the head reads no patch.

    Other models stay as they are. For patches from timm's `forward_features` or `forward_intermediates`, use
    `full_output`. Another pooling (`reset_classifier`) needs a model that was not shortened.
    """
    if type(network) not in (VisionTransformer, VisionTransformerDistilled) or network.global_pool != "token":
        return
    blocks: Any = network.blocks
    for last in blocks[-1:]:
        if type(last) is Block and type(last.attn) is Attention:
            blocks[-1] = LastBlock(last, 2 if isinstance(network, VisionTransformerDistilled) else 1)


def find_shortened_block(network: nn.Module) -> Any | None:
    """The last block, timm's or ours, if it computes only the tokens that the head reads."""
    blocks: Any = getattr(network, "blocks", [])
    return next((last for last in blocks[-1:] if getattr(last, "num_output_tokens", None) is not None), None)


@contextmanager
def full_output(network: nn.Module) -> Iterator[None]:
    """Let the last block compute all tokens meanwhile."""
    last = find_shortened_block(network)
    if last is None:
        yield
        return
    count, last.num_output_tokens = last.num_output_tokens, None
    try:
        yield
    finally:
        last.num_output_tokens = count
