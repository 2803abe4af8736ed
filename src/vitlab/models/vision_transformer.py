"""The Vision Transformer (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words"), in plain torch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from vitlab.models.attention import SelfAttention
from vitlab.models.positions import sincos2d

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


class PatchEmbedding(nn.Module):
    """Cuts images `[B, C, H, W]` into patches and projects each to a token: `[B, N, D]`, row by row.

    A convolution whose stride is its kernel size is the linear projection of the flattened patches (section 3.1).
    """

    def __init__(self, patch_size: tuple[int, int], in_channels: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class FeedForward(nn.Module):
    """The position-wise feed-forward network of a block, tokens `[B, N, D]` -> `[B, N, D]`."""

    def __init__(self, embed_dim: int, hidden_dim: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.act = ACTIVATIONS[activation]()
        self.drop1 = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)
        self.drop2 = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))


class Block(nn.Module):
    """A pre-norm transformer block, tokens `[B, N, D]` -> `[B, N, D]`.

    `drop_path` is the probability with which an image skips each residual branch during training (stochastic depth,
    Huang et al. 2016).
    """

    def __init__(
        self,
        attention: SelfAttention,
        embed_dim: int,
        hidden_dim: int,
        activation: str,
        dropout: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.attn = attention
        self.norm2 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.mlp = FeedForward(embed_dim, hidden_dim, activation, dropout)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """A Vision Transformer: float images `[B, in_channels, H, W]` -> logits `[B, num_classes]`.

    Parameter names and shapes are those of timm's VisionTransformer with `fc_norm=False`, so weights go either way.

    Args:
        image_size: Side of the images in pixels, or (height, width).
        patch_size: Side of the patches in pixels, or (height, width); divides `image_size`.
        in_channels: Channels of the images.
        num_classes: Width of the logits.
        embed_dim: Width D of the tokens; a multiple of `num_heads`.
        depth: Number of blocks.
        num_heads: Attention heads of each block.
        mlp_ratio: Hidden width of the feed-forward networks, as a multiple of `embed_dim`; rounded.
        pool: "cls" classifies a learned class token, "mean" the mean of all tokens; both after the final norm.
        pos_embed: "learned" (drawn with std 0.02), "sincos2d" (fixed), or "none". The class token has a learned
            position too; with sincos2d it has none.
        qk_norm: Normalise queries and keys.
        activation: "gelu" or "relu".
        dropout: Of the tokens after the position embedding, the attention's output and the feed-forward networks.
        attention_dropout: Of the attention weights.
        drop_path: Stochastic depth of the last block; it rises linearly from 0 at the first one.
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
        in_channels: int,
        num_classes: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        pool: str,
        pos_embed: str,
        qk_norm: bool = False,
        activation: str = "gelu",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
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
        _check_choice("pool", pool, ("cls", "mean"))
        _check_choice("pos_embed", pos_embed, ("learned", "sincos2d", "none"))
        _check_choice("activation", activation, tuple(ACTIVATIONS))
        self.in_channels = in_channels
        self.grid_size = (self.image_size[0] // patch_size[0], self.image_size[1] // patch_size[1])
        self.patch_embed = PatchEmbedding(patch_size, in_channels, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if pool == "cls" else None
        self._add_positions(pos_embed, embed_dim)
        self.pos_drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(
                SelfAttention(
                    embed_dim,
                    num_heads,
                    qk_norm=qk_norm,
                    attention_dropout=attention_dropout,
                    dropout=dropout,
                    fused_attention=fused_attention,
                ),
                embed_dim,
                round(embed_dim * mlp_ratio),
                activation,
                dropout,
                drop_path * index / max(depth - 1, 1),
            )
            for index in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = (
            nn.Linear(embed_dim, num_classes)
            if head_hidden_dim is None
            else nn.Sequential(
                nn.Linear(embed_dim, head_hidden_dim), nn.Tanh(), nn.Linear(head_hidden_dim, num_classes)
            )
        )
        self._initialise()

    def _add_positions(self, pos_embed: str, embed_dim: int) -> None:
        patches = self.grid_size[0] * self.grid_size[1]
        class_tokens = 0 if self.cls_token is None else 1
        if pos_embed == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, class_tokens + patches, embed_dim))
        elif pos_embed == "sincos2d":
            table = torch.cat([torch.zeros(1, class_tokens, embed_dim), sincos2d(embed_dim, self.grid_size)], dim=1)
            self.register_buffer("pos_embed", table, persistent=False)
        else:
            self.pos_embed = None

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        projection = self.patch_embed.proj
        fan_in = projection.weight[0].numel()
        nn.init.trunc_normal_(projection.weight, std=fan_in**-0.5)  # LeCun: unit-variance pixels give unit tokens
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
        for embedding in (self.cls_token, self.pos_embed):
            if isinstance(embedding, nn.Parameter):
                nn.init.trunc_normal_(embedding, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are no weights of a layer (timm's convention): class token and positions."""
        return {"cls_token", "pos_embed"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names, layer by layer from the input on (timm's convention): stem, blocks with the
        final norm in the last, and the head, which no pattern names."""
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def get_classifier(self) -> nn.Module:
        """The head (timm's convention)."""
        return self.head

    def forward_features(self, images: Tensor) -> Tensor:
        """Normalised tokens `[B, N, D]` (`[B, 1 + N, D]`, the class token first) of images `[B, C, H, W]`."""
        expected = (self.in_channels, *self.image_size)
        if images.shape[1:] != expected:
            raise ValueError(f"expected images of shape [B, {_size(expected)}], got {list(images.shape)}")
        x = self.patch_embed(images)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        x = self.pos_drop(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.forward_features(images)
        pooled = tokens.mean(dim=1) if self.cls_token is None else tokens[:, 0]
        return self.head(pooled)


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
