"""The last block of timm's ViTs whose head reads the class token: what nobody reads is not computed."""

from typing import Any

from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn


class LastBlock(nn.Module):
    """timm's pre-norm block for the head alone: tokens `[B, N, D]` -> `[B, read, D]`, the first ones.

    Attention is over all tokens; the feed-forward network, which mixes none, works on those that are read. Parameters,
    their names, logits and gradients are those of the block.
    """

    def __init__(self, block: Block, read: int) -> None:
        super().__init__()
        for name, module in block.named_children():
            self.add_module(name, module)
        self.read = read

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        own: Any = self
        x = (x + own.drop_path1(own.ls1(own.attn(own.norm1(x), **options))))[:, : self.read]
        return x + own.drop_path2(own.ls2(own.mlp(own.norm2(x))))


def shorten_last_block(network: nn.Module) -> None:
    """Puts a `LastBlock` into timm's plain and distilled ViTs, in place, where the head reads no patch; leaves other
    networks as they are."""
    if type(network) not in (VisionTransformer, VisionTransformerDistilled) or network.global_pool != "token":
        return
    blocks: Any = network.blocks
    if len(blocks) and type(blocks[-1]) is Block:
        blocks[-1] = LastBlock(blocks[-1], read=2 if isinstance(network, VisionTransformerDistilled) else 1)
