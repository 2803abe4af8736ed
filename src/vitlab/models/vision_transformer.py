"""The Vision Transformer (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words"), in plain torch."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import PatchDropout
from timm.models import checkpoint_seq
from torch import Tensor, nn

from vitlab.models.attention import SelfAttention
from vitlab.models.block import ACTIVATIONS, Block
from vitlab.models.patch_embedding import STEMS
from vitlab.models.pooling import SequencePooling
from vitlab.models.positions import sincos2d


class VisionTransformer(nn.Module):
    """A Vision Transformer: float images `[B, in_channels, H, W]` -> logits `[B, num_classes]`.

    Parameter names and shapes are those of timm's VisionTransformer with `fc_norm=False`, so weights go either way;
    timm's has neither another stem than "patch" nor `pool="attention"` nor `locality_attention`.

    Args:
        image_size: Side of the images in pixels, or (height, width).
        patch_size: Side of the patches in pixels, or (height, width); divides `image_size`.
        in_channels: Channels of the images.
        num_classes: Width of the logits.
        embed_dim: Width D of the tokens; a multiple of `num_heads`.
        depth: Number of blocks.
        num_heads: Attention heads of each block.
        mlp_ratio: Hidden width of the feed-forward networks, as a multiple of `embed_dim`; rounded.
        stem: "patch" projects patches (`PatchEmbedding`), "shifted" also their surroundings
            (`ShiftedPatchTokenization`), "conv" makes it a hybrid (`ConvolutionalTokenizer`).
        pool: "cls" classifies a learned class token, "mean" the mean of the patches, "attention" their mean by learned
            weights (`SequencePooling`); all after the final norm.
        registers: Learned tokens that take part in attention and are not read (Darcet et al. 2024, "Vision
            Transformers Need Registers", section 2.2).
        pos_embed: "learned" (drawn with std 0.02), "sincos2d" (fixed), or "none". The class token and the registers
            have learned positions too; with sincos2d they have none.
        qk_norm, locality_attention: See `SelfAttention`.
        attention_init: "normal" draws the weights of attention with std 0.02, "mimetic" as
            `SelfAttention.initialise_mimetically` does.
        activation: "gelu" or "relu".
        dropout: Of the tokens after the position embedding, the attention's output and the feed-forward networks.
        attention_dropout: Of the attention weights.
        layer_scale, drop_path: See `Block`; of the last block the latter, which rises linearly from 0 at the first one.
        patch_dropout: Share of the patches that each image lacks during training, drawn anew each time (Liu et al.
            2022, "PatchDropout: Economizing Vision Transformers Using Patch Dropout", section 3).
        head_hidden_dim: Width of a hidden, tanh-activated layer in the head (the paper's pre-training head,
            section 3.1); None makes the head one linear layer.
        fused_attention: See `SelfAttention`.

    Raises:
        ValueError: a size does not divide, or a choice is unknown; the message names both values.
    """

    pos_embed: Tensor | None

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        in_channels: int = 3,
        num_classes: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        pool: str,
        pos_embed: str,
        stem: str = "patch",
        registers: int = 0,
        qk_norm: bool = False,
        locality_attention: bool = False,
        attention_init: str = "normal",
        layer_scale: float | None = None,
        activation: str = "gelu",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        patch_dropout: float = 0.0,
        head_hidden_dim: int | None = None,
        fused_attention: bool | None = None,
    ) -> None:
        super().__init__()
        self.image_size, patch_size = _pair(image_size), _pair(patch_size)
        if any(image % patch for image, patch in zip(self.image_size, patch_size, strict=True)):
            raise ValueError(
                f"image_size={_size(self.image_size)} is not a multiple of patch_size={_size(patch_size)}: "
                "an image must divide into whole patches"
            )
        _check_choice("stem", stem, tuple(STEMS))
        _check_choice("pool", pool, ("cls", "mean", "attention"))
        _check_choice("pos_embed", pos_embed, ("learned", "sincos2d", "none"))
        _check_choice("attention_init", attention_init, ("normal", "mimetic"))
        _check_choice("activation", activation, tuple(ACTIVATIONS))
        self.in_channels = in_channels
        self.grid_size = (self.image_size[0] // patch_size[0], self.image_size[1] // patch_size[1])
        self.patch_embed = STEMS[stem](patch_size, in_channels, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if pool == "cls" else None
        self.reg_token = nn.Parameter(torch.zeros(1, registers, embed_dim)) if registers else None
        self.num_prefix_tokens = (1 if pool == "cls" else 0) + registers
        self._add_positions(pos_embed, embed_dim)
        self.pos_drop = nn.Dropout(dropout)
        self.patch_drop = PatchDropout(patch_dropout, self.num_prefix_tokens) if patch_dropout else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(
                SelfAttention(
                    embed_dim,
                    num_heads,
                    qk_norm=qk_norm,
                    locality=locality_attention,
                    attention_dropout=attention_dropout,
                    dropout=dropout,
                    fused_attention=fused_attention,
                ),
                embed_dim,
                round(embed_dim * mlp_ratio),
                activation=activation,
                dropout=dropout,
                layer_scale=layer_scale,
                drop_path=drop_path * index / max(depth - 1, 1),
                read=1 if pool == "cls" and index == depth - 1 else None,
            )
            for index in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.attn_pool = SequencePooling(embed_dim) if pool == "attention" else None
        self.head = (
            nn.Linear(embed_dim, num_classes)
            if head_hidden_dim is None
            else nn.Sequential(
                nn.Linear(embed_dim, head_hidden_dim), nn.Tanh(), nn.Linear(head_hidden_dim, num_classes)
            )
        )
        self.grad_checkpointing = False
        self._initialise(mimetic=attention_init == "mimetic")

    def _add_positions(self, pos_embed: str, embed_dim: int) -> None:
        if pos_embed == "learned":
            tokens = self.num_prefix_tokens + self.grid_size[0] * self.grid_size[1]
            self.pos_embed = nn.Parameter(torch.zeros(1, tokens, embed_dim))
        elif pos_embed == "sincos2d":
            prefix = torch.zeros(1, self.num_prefix_tokens, embed_dim)
            table = torch.cat([prefix, sincos2d(embed_dim, self.grid_size)], dim=1)
            self.register_buffer("pos_embed", table, persistent=False)
        else:
            self.pos_embed = None

    def _initialise(self, *, mimetic: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if mimetic:
            for layer in self.modules():
                if isinstance(layer, SelfAttention):
                    layer.initialise_mimetically()
        self.patch_embed.initialise()
        for embedding in (self.cls_token, self.pos_embed, self.reg_token):
            if isinstance(embedding, nn.Parameter):
                nn.init.trunc_normal_(embedding, std=0.02)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keeps the blocks' inputs alone for the backward pass, and computes the rest again (Chen et al. 2016,
        "Training Deep Nets with Sublinear Memory Cost"; timm's convention)."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are no weights of a layer (timm's convention): class token, registers and
        positions."""
        return {"cls_token", "reg_token", "pos_embed"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names, layer by layer from the input on (timm's convention): stem, blocks with the
        final norm and the pooling in the last, and the head, which no pattern names."""
        return {
            "stem": r"^cls_token|reg_token|pos_embed|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm|attn_pool", (99999,))],
        }

    def get_classifier(self) -> nn.Module:
        """The head (timm's convention)."""
        return self.head

    def forward_features(self, images: Tensor) -> Tensor:
        """Normalised tokens `[B, N, D]` of images `[B, C, H, W]`: registers and patches. Where the head reads a class
        token, that alone, `[B, 1, D]`; all with the class token first within `vitlab.models.last_block.full_output`."""
        expected = (self.in_channels, *self.image_size)
        if images.shape[1:] != expected:
            raise ValueError(f"expected images of shape [B, {_size(expected)}], got {list(images.shape)}")
        x = self.patch_embed(images)
        prefix = [token for token in (self.cls_token, self.reg_token) if token is not None]
        if prefix:
            x = torch.cat([*(token.expand(x.shape[0], -1, -1).to(x.dtype) for token in prefix), x], dim=1)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        x = self.patch_drop(self.pos_drop(x))
        if self.grad_checkpointing and torch.is_grad_enabled():
            return self.norm(checkpoint_seq(self.blocks, x))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.forward_features(images)
        if self.cls_token is not None:
            return self.head(tokens[:, 0])
        patches = tokens[:, self.num_prefix_tokens :]
        return self.head(patches.mean(dim=1) if self.attn_pool is None else self.attn_pool(patches))


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def _size(sides: Sequence[int]) -> str:
    if len(sides) == 2 and sides[0] == sides[1]:
        return str(sides[0])
    return ", ".join(map(str, sides))


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value} is unknown; choose one of {', '.join(choices)}")
