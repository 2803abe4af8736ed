"""The Vision Transformer: blocks and pooling."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from timm.layers import LayerScale, Mlp, to_2tuple
from timm.models import checkpoint
from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from vitlab.models.attention import SelfAttention
from vitlab.models.patch_dropout import SpreadPatchDropout
from vitlab.models.patch_embedding import STEMS
from vitlab.models.positions import RelativePositionBias, rotary2d, rows_of_kept, sincos2d

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


class VisionTransformer(nn.Module):
    """A Vision Transformer: float images `[B, in_channels, H, W]` -> logits `[B, num_classes]`.

    Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words". Parameter names and shapes are those of timm's
    VisionTransformer with `fc_norm=False`, so weights can be exchanged. timm's has only the stem "patch", no
    `pool="attention"`, no `locality_attention`, no `rotary` and no `relative_bias`. A ValueError names the values of a
    size that does not divide, or of an unknown choice.

    Args:
        image_size, patch_size: Sides in pixels, or (height, width); the patches divide the image.
        embed_dim, depth, num_heads: Width D of the tokens, number of blocks, and attention heads per block.
        mlp_ratio: Hidden width of the feed-forward networks, as a multiple of `embed_dim`; rounded.
        pool: The head reads, after the final norm: "cls" a learned class token, "mean" the mean of the patches,
            "attention" their mean with learned weights (`SequencePooling`).
        pos_embed: "learned" (drawn with std 0.02), "sincos2d" (fixed), or "none". Learned positions include the class
            token and the registers; fixed ones do not.
        rotary: Turn queries and keys by the row and column of their patch (`rotary2d`), with or without `pos_embed`.
        relative_bias: Add relative position biases to the attention scores (`RelativePositionBias`), with or without
            `pos_embed`.
        stem: "patch" (`PatchEmbedding`), "shifted" (`ShiftedPatchTokenization`) or "conv" (`ConvolutionalTokenizer`).
        registers: Learned tokens that take part in attention and that the head does not read (Darcet et al. 2024,
            "Vision Transformers Need Registers", section 2.2).
        qk_norm, locality_attention, attention_dropout, fused_attention: See `SelfAttention`.
        attention_init: "normal" (std 0.02) or "mimetic" (`SelfAttention.initialise_mimetically`).
        activation: "gelu" or "relu".
        dropout: After the position embedding, after attention and in the feed-forward networks.
        layer_scale, drop_path: See `Block`; drop_path rises linearly from 0 in the first block to this in the last.
        residual_init: "normal" (std 0.02), or "zero" for the last weights of each residual branch, so that at first
            every block returns its input (Zhang et al. 2019, "Fixup Initialization", section 3).
        patch_dropout: Fraction of the patches dropped at random from each training image (`SpreadPatchDropout`).
        head_hidden_dim: Width of a hidden, tanh-activated layer in the head (the paper's pre-training head,
            section 3.1); None makes the head one linear layer.
        bf16_residual: Keep the tokens between the blocks in bfloat16 where autocast computes in it. Otherwise they
            are float32, because the positions are.
    """

    pos_embed: Tensor | None
    rotation: Tensor | None

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        num_classes: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        pool: Literal["cls", "mean", "attention"],
        pos_embed: Literal["learned", "sincos2d", "none"],
        rotary: bool = False,
        relative_bias: bool = False,
        in_channels: int = 3,
        stem: Literal["patch", "shifted", "conv"] = "patch",
        registers: int = 0,
        qk_norm: bool = False,
        locality_attention: bool = False,
        attention_init: Literal["normal", "mimetic"] = "normal",
        residual_init: Literal["normal", "zero"] = "normal",
        layer_scale: float | None = None,
        activation: Literal["gelu", "relu"] = "gelu",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        patch_dropout: float = 0.0,
        head_hidden_dim: int | None = None,
        fused_attention: bool | None = None,
        bf16_residual: bool = False,
    ) -> None:
        super().__init__()
        self.image_size: tuple[int, int] = to_2tuple(image_size)
        patch: tuple[int, int] = to_2tuple(patch_size)
        if any(image % side for image, side in zip(self.image_size, patch, strict=True)):
            raise ValueError(
                f"image_size={_format(self.image_size)} is not a multiple of patch_size={_format(patch)}: "
                "an image must divide into whole patches"
            )
        _check_choice("stem", stem, list(STEMS))
        _check_choice("pool", pool, ("cls", "mean", "attention"))
        _check_choice("pos_embed", pos_embed, ("learned", "sincos2d", "none"))
        _check_choice("attention_init", attention_init, ("normal", "mimetic"))
        _check_choice("residual_init", residual_init, ("normal", "zero"))
        if residual_init == "zero" and attention_init == "mimetic":
            raise ValueError("residual_init=zero would erase a part of attention_init=mimetic: choose one of them")
        _check_choice("activation", activation, list(ACTIVATIONS))
        self.in_channels = in_channels
        self.grid_size = (self.image_size[0] // patch[0], self.image_size[1] // patch[1])
        self.patch_embed = STEMS[stem](patch, in_channels, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if pool == "cls" else None
        self.reg_token = nn.Parameter(torch.zeros(1, registers, embed_dim)) if registers else None
        self.num_prefix_tokens = (1 if pool == "cls" else 0) + registers
        if pos_embed == "learned":
            tokens = self.num_prefix_tokens + self.grid_size[0] * self.grid_size[1]
            self.pos_embed = nn.Parameter(torch.zeros(1, tokens, embed_dim))
        elif pos_embed == "sincos2d":
            prefix = torch.zeros(1, self.num_prefix_tokens, embed_dim)
            table = torch.cat([prefix, sincos2d(embed_dim, self.grid_size)], dim=1)
            self.register_buffer("pos_embed", table, persistent=False)
        else:
            self.pos_embed = None
        rotation = rotary2d(embed_dim // num_heads, self.grid_size, self.num_prefix_tokens) if rotary else None
        self.register_buffer("rotation", rotation, persistent=False)
        self.relative_bias: RelativePositionBias | None = None
        if relative_bias:
            self.relative_bias = RelativePositionBias(self.grid_size, num_heads, self.num_prefix_tokens)
        self.bf16_residual = bf16_residual
        self.pos_drop = nn.Dropout(dropout)
        self.patch_drop: SpreadPatchDropout | None = None
        if patch_dropout:
            self.patch_drop = SpreadPatchDropout(patch_dropout, self.grid_size)
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
                drop_path=drop_path * index / max(depth - 1, 1) if drop_path else None,
                num_output_tokens=1 if pool == "cls" and index == depth - 1 else None,
                bf16_residual=bf16_residual,
            )
            for index in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.attn_pool = SequencePooling(embed_dim) if pool == "attention" else None
        self.head: nn.Module = nn.Linear(head_hidden_dim or embed_dim, num_classes)
        if head_hidden_dim is not None:
            self.head = nn.Sequential(nn.Linear(embed_dim, head_hidden_dim), nn.Tanh(), self.head)
        self.grad_checkpointing = False
        self._initialise(mimetic=attention_init == "mimetic", zero_branches=residual_init == "zero")

    def _initialise(self, *, mimetic: bool, zero_branches: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layer in self.modules():
            if mimetic and isinstance(layer, SelfAttention):
                layer.initialise_mimetically()
            if zero_branches and isinstance(layer, Block):
                nn.init.zeros_(layer.attn.proj.weight)
                nn.init.zeros_(layer.mlp.fc2.weight)
        self.patch_embed.initialise()
        for embedding in (self.cls_token, self.pos_embed, self.reg_token):
            if isinstance(embedding, nn.Parameter):
                nn.init.trunc_normal_(embedding, std=0.02)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the blocks' inputs for the backward pass, recompute the rest (Chen et al. 2016; as in timm)."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay besides biases and norms (as in timm)."""
        return {"cls_token", "reg_token", "pos_embed", "relative_bias.table"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names by layer (as in timm); the last has the final norm and pooling, not the head."""
        return {
            "stem": r"^cls_token|reg_token|pos_embed|relative_bias|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm|attn_pool", (99999,))],
        }

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward_features(self, images: Tensor) -> Tensor:
        """Images `[B, C, H, W]` -> normalised tokens `[B, N, D]`: registers and patches.

        If the head reads a class token, only that token, `[B, 1, D]`; within `full_output` all, the class token first.
        """
        expected = (self.in_channels, *self.image_size)
        if images.shape[1:] != expected:
            raise ValueError(f"expected images of shape [B, {_format(expected)}], got {list(images.shape)}")
        if self.patch_drop is None or not self.patch_drop.training:
            x, kept = self.patch_embed(images), None
        else:  # before the projection, so that dropped patches cost nothing there
            patches, kept = self.patch_drop(self.patch_embed.cut(images))
            x = self.patch_embed.project(patches)
        x = x.contiguous()  # a convolution returns channels before tokens: every LayerNorm would copy that
        prefix = [token for token in (self.cls_token, self.reg_token) if token is not None]
        if prefix:
            x = torch.cat([*(token.expand(x.shape[0], -1, -1).to(x.dtype) for token in prefix), x], dim=1)
        positions, rotation = self.pos_embed, self.rotation
        if kept is not None:
            if positions is not None:
                positions = rows_of_kept(positions[0], kept, self.num_prefix_tokens)
            if rotation is not None:
                rotation = rows_of_kept(rotation, kept, self.num_prefix_tokens).unsqueeze(1)  # the same for each head
        if positions is not None:
            keeps_dtype = self.bf16_residual and x.dtype == torch.bfloat16
            x = x + (positions.to(x.dtype) if keeps_dtype else positions)
        x = self.pos_drop(x)
        bias = None if self.relative_bias is None else self.relative_bias(kept)
        recomputes = self.grad_checkpointing and torch.is_grad_enabled()
        for block in self.blocks:
            x = checkpoint(block, x, rotation, bias) if recomputes else block(x, rotation, bias)
        return self.norm(x)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.forward_features(images)
        if self.cls_token is not None:
            return self.head(tokens[:, 0])
        patches = tokens[:, self.num_prefix_tokens :]
        return self.head(patches.mean(dim=1) if self.attn_pool is None else self.attn_pool(patches))


class Block(nn.Module):
    """A pre-norm transformer block: tokens `[B, N, D]` -> `[B, N, D]`.

    Args:
        layer_scale: Initial value of learned factors, one per channel, for both residual branches (Touvron et al. 2021,
            "Going deeper with Image Transformers", section 2); None leaves them out.
        drop_path: Probability that an image skips a residual branch in training (`DropPath`); None leaves it out.
        num_output_tokens: In the last block: compute only the first tokens, those that the head reads,
            `[B, num_output_tokens, D]`. Logits and gradients stay the same. None computes all.
        bf16_residual: Return tokens of the dtype of `x`, even if layer scale, in float32, raises a branch's.
    """

    def __init__(
        self,
        attention: SelfAttention,
        embed_dim: int,
        hidden_dim: int,
        *,
        activation: str,
        dropout: float,
        layer_scale: float | None,
        drop_path: float | None,
        num_output_tokens: int | None = None,
        bf16_residual: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.attn = attention
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(embed_dim, layer_scale)
        self.norm2 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.mlp = Mlp(embed_dim, hidden_dim, act_layer=ACTIVATIONS[activation], drop=dropout)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(embed_dim, layer_scale)
        self.drop_path = nn.Identity() if drop_path is None else DropPath(drop_path)
        self.num_output_tokens = num_output_tokens
        self.bf16_residual = bf16_residual

    def forward(self, x: Tensor, rotation: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        count = self.num_output_tokens
        x = self._add(x[:, :count], self.ls1(self.attn(self.norm1(x), count, rotation, bias)))
        return self._add(x, self.ls2(self.mlp(self.norm2(x))))

    def _add(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + self.drop_path(branch.to(x.dtype) if self.bf16_residual else branch)


class DropPath(nn.Module):
    """Set whole residual branches `[B, ...]` to zero in training, for an image with probability `p`, and divide the
    others by 1 - p (Huang et al. 2016, "Deep Networks with Stochastic Depth").

    As timm's DropPath and torchvision's StochasticDepth, which make `p` a constant of a compiled graph. Here it is a
    tensor, so that blocks that differ only in `p` share a graph.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.keep = torch.tensor(1.0 - p)  # no buffer: DDP would send it in each step, and a half precision round it

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if not torch.compiler.is_compiling():
            return stochastic_depth(x, self.p, "row")
        kept = torch.rand(len(x), *[1] * (x.dim() - 1), device=x.device) < self.keep
        return x * (kept / self.keep).to(x.dtype)


class SequencePooling(nn.Module):
    """Average an image's tokens with learned weights: `[B, N, D]` -> `[B, D]` (Hassani et al. 2021, "Escaping the Big
    Data Paradigm with Compact Transformers", section 3, SeqPool, without a bias, which the softmax cancels)."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(embed_dim, 1, bias=False)

    def weights(self, tokens: Tensor) -> Tensor:
        """Weight of each token, `[B, N]`; each row sums to 1."""
        return torch.softmax(self.score(tokens).squeeze(2), dim=1)

    def forward(self, tokens: Tensor) -> Tensor:
        return (self.weights(tokens).to(tokens.dtype).unsqueeze(1) @ tokens).squeeze(1)


def _format(sides: Sequence[int]) -> str:
    return str(sides[0]) if len(sides) == 2 and sides[0] == sides[1] else ", ".join(map(str, sides))


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value} is unknown; choose one of {', '.join(choices)}")
