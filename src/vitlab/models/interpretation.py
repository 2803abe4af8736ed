"""Interpret a ViT: attention, rollout, relevance, distances, filters, positions."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitlab.models.timm_models import full_output
from vitlab.models.vision_transformer import VisionTransformer

SOFTMAXES = (torch.softmax, Tensor.softmax, F.softmax)


@dataclass(frozen=True)
class TokenLayout:
    """The meaning of a ViT's tokens."""

    prefix: int  # number of tokens before the patches: class, distillation and register tokens
    grid: tuple[int, int]  # rows and columns of patches, which follow row by row
    # The tokens that the head reads: the class (and distillation) token, or those it averages; None if it does neither.
    head_tokens: slice | None

    @property
    def tokens(self) -> int:
        return self.prefix + self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class Attention:
    """Attention of every head of every block."""

    weights: Tensor  # float32 [depth, B, heads, tokens, tokens]; each row, of one query, sums to 1
    logits: Tensor  # float32 [B, classes]
    layout: TokenLayout
    pooling: Tensor  # weight of each token in the head's input, float32 [B, tokens]; rows sum to 1


def record_attention(network: nn.Module, images: Tensor) -> Attention | None:
    """Run a model, in eval mode and float32, on images, float32 `[B, 3, H, W]`, and record its attention.

    None unless every block has one softmax attention among all tokens of an image, and the head reads a class token or
    averages them. A CNN, Swin's windows, ConViT's gated positions and a maximum do not.
    """
    with torch.no_grad():
        found = _record(network, images)
    return found[0] if found else None


def attention_gradients(network: nn.Module, images: Tensor, classes: Tensor) -> tuple[Attention, Tensor] | None:
    """As `record_attention`, also with the gradient of one logit per image (`classes`, int64 `[B]`) with respect to the
    attention weights, float32 `[depth, B, heads, tokens, tokens]`; the parameters' gradients are not changed."""
    with torch.enable_grad():
        # Images that require a gradient put the weights into the graph even if all parameters are frozen.
        found = _record(network, images.detach().requires_grad_())
        if found is None:
            return None
        attention, layers = found
        gradients = torch.autograd.grad(attention.logits.gather(1, classes.unsqueeze(1)).sum(), layers)
    weights, logits = attention.weights.detach(), attention.logits.detach()
    return replace(attention, weights=weights, logits=logits), torch.stack(gradients)


def token_layout(network: nn.Module, image_size: tuple[int, int]) -> TokenLayout | None:
    """Describe a model's tokens at an image size (pixels); None unless it is a ViT, ours or timm's."""
    if isinstance(network, VisionTransformer):
        prefix = network.num_prefix_tokens
        return TokenLayout(prefix, network.grid_size, slice(prefix, None) if network.cls_token is None else slice(0, 1))
    own: Any = network
    feature_size = getattr(getattr(own, "patch_embed", None), "dynamic_feat_size", None)
    if feature_size is None or not hasattr(own, "num_prefix_tokens"):
        return None
    pooling = getattr(own, "global_pool", "")
    head_tokens: slice | None = None  # for max, avgmax and map
    if pooling == "token":
        head_tokens = slice(0, 2 if hasattr(own, "head_dist") else 1)  # distilled DeiTs have two heads
    elif pooling == "avg":
        head_tokens = slice(0 if getattr(own, "pool_include_prefix", False) else own.num_prefix_tokens, None)
    return TokenLayout(own.num_prefix_tokens, feature_size(image_size), head_tokens)


def _record(network: nn.Module, images: Tensor) -> tuple[Attention, list[Tensor]] | None:
    """The attention, and the weights of each block as they are in the graph of the logits."""
    height, width = images.shape[-2:]
    layout = token_layout(network, (height, width))
    if layout is None or layout.head_tokens is None:
        return None
    recorder = _Recorder(len(images), layout)
    with full_output(network), recorder:
        logits = network.forward(images)  # torch.compile replaces network(images)
    layers = recorder.layers
    if len(layers) != len(network.blocks) or len({layer.shape for layer in layers}) > 1:  # type: ignore[arg-type]
        return None
    pooling = torch.zeros(len(images), layout.tokens, device=images.device)
    learned = isinstance(network, VisionTransformer) and network.attn_pool is not None
    equal = 1 / len(range(layout.tokens)[layout.head_tokens])
    pooling[:, layout.head_tokens] = recorder.pooling if learned else equal
    return Attention(torch.stack(layers), logits.float(), layout, pooling), layers


class _Recorder(TorchFunctionMode):
    """Watch the torch functions that a model calls, not its modules: the weights then include rotary and relative
    positions, norms of queries and keys, and scales of any kind."""

    def __init__(self, batch: int, layout: TokenLayout) -> None:
        super().__init__()
        self.batch = batch
        self.layout = layout
        self.layers: list[Tensor] = []
        self.pooling: Any = None  # weights of a SequencePooling, `[B, patches]`

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tokens = self.layout.tokens
        is_self_attention = func is F.scaled_dot_product_attention and args[0].shape == args[1].shape
        if is_self_attention and self._covers_all_tokens(args[0]):
            return self._attend(*args, **kwargs)
        result = func(*args, **kwargs)
        if func in SOFTMAXES and self._covers_all_tokens(result) and result.shape[-1] == tokens:
            return self._keep(result.float()).to(result.dtype)
        if func in SOFTMAXES and result.shape == (self.batch, tokens - self.layout.prefix):
            self.pooling = result.detach().float()
        return result

    def _covers_all_tokens(self, tensor: Tensor) -> bool:
        """Whether the shape is `[B, heads, tokens, ...]`."""
        return tensor.ndim == 4 and tensor.shape[0] == self.batch and tensor.shape[2] == self.layout.tokens

    def _keep(self, weights: Tensor) -> Tensor:
        self.layers.append(weights)
        return weights  # the model continues with these, so its logits have a gradient with respect to them

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        """Compute torch's scaled_dot_product_attention, and keep the weights."""
        scale = options.get("scale") or query.shape[-1] ** -0.5
        scores = (query.float() * scale) @ key.float().transpose(-2, -1)
        if attn_mask is not None:
            scores = scores + attn_mask  # timm's relative positions
        return self._keep(scores.softmax(dim=-1)).to(value.dtype) @ value


def rollout(weights: Tensor) -> Tensor:
    """Attention rollout (Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3).

    Each layer is the mean of the residual connection and of the heads' mean; the layers are multiplied. Float
    `[depth, B, heads, tokens, tokens]` -> the part of each input token (last dimension) in each output token,
    `[B, tokens, tokens]`; rows sum to 1.
    """
    identity = torch.eye(weights.shape[-1], device=weights.device)
    flow = identity.expand(weights.shape[1], -1, -1)
    for layer in weights.mean(dim=2):
        mixed = layer + identity
        flow = mixed / mixed.sum(dim=-1, keepdim=True) @ flow
    return flow


def gradient_rollout(weights: Tensor, gradients: Tensor) -> Tensor:
    """Relevance for a class (Chefer et al. 2021, "Generic Attention-model Explainability", equations 5 and 6).

    Attention counts if more of it would raise the class's logit: relu(gradient * attention), averaged over the heads,
    and layer by layer R <- R + mean @ R, starting from R = 1. Weights and gradients of one logit, float `[depth, B,
    heads, tokens, tokens]` -> relevance of each input token (last dimension) to each output token, without the initial
    1 of each token for itself: `[B, tokens, tokens]`.
    """
    identity = torch.eye(weights.shape[-1], device=weights.device)
    relevance = identity.expand(weights.shape[1], -1, -1)
    for layer in (gradients * weights).relu().mean(dim=2):
        relevance = relevance + layer @ relevance
    return relevance - identity


def seen_by_head(flow: Tensor, attention: Attention) -> Tensor:
    """The part of each patch in the head's input: `[B, ..., tokens, tokens]` -> `[B, ..., rows, columns]`: the class
    token's row, or the patches' rows averaged as the model pools them."""
    rows = torch.einsum("bq,b...qk->b...k", attention.pooling, flow)[..., attention.layout.prefix :]
    return rows.reshape(*rows.shape[:-1], *attention.layout.grid)


def last_layer(attention: Attention) -> Tensor:
    """Attention of the last block's heads from the tokens that the model's head reads: `[B, heads, rows, columns]`."""
    return seen_by_head(attention.weights[-1], attention)


def mean_attention_distance(attention: Attention, patch_size: tuple[float, float]) -> Tensor:
    """Mean attention distance of each head (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", appendix D.7):
    between a patch and those it attends to, weighted by attention, averaged over patches and images. Attention to other
    tokens is left out. In pixels, as `patch_size` (height, width); float32 `[depth, heads]`."""
    layout = attention.layout
    among_patches = attention.weights[..., layout.prefix :, layout.prefix :]
    distances = patch_distances(layout.grid, patch_size).to(among_patches.device)
    fractions = among_patches / among_patches.sum(dim=-1, keepdim=True)
    return (fractions * distances).sum(dim=-1).mean(dim=(1, 3))


def patch_distances(grid: tuple[int, int], patch_size: tuple[float, float]) -> Tensor:
    """Distances between the centres of all patches in pixels, float32 `[patches, patches]`."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    centres = torch.stack([rows.flatten() * patch_size[0], columns.flatten() * patch_size[1]], dim=1).float()
    return torch.cdist(centres, centres)


def filter_components(network: nn.Module, count: int) -> tuple[Tensor, Tensor] | None:
    """Principal components of the stem's first filters (Dosovitskiy et al. 2021, figure 7, left): the first `count`, of
    length 1, float32 `[components, 3, height, width]`, and the fraction of the filters' variance that each explains,
    float32 `[components]`; None without filters of colour images larger than a pixel."""
    if isinstance(network, VisionTransformer):
        filters: Any = network.patch_embed.filters()
    else:
        projection = getattr(getattr(network, "patch_embed", None), "proj", None)
        filters = projection.weight if isinstance(projection, nn.Conv2d) else None
    if filters is None or filters.shape[1] != 3 or filters.shape[2:] == (1, 1):
        return None
    flat = filters.detach().float().flatten(1)
    _, singular, directions = torch.linalg.svd(flat - flat.mean(dim=0), full_matrices=False)
    explained = singular.square() / singular.square().sum()
    return directions[:count].reshape(-1, *filters.shape[1:]), explained[:count]


def position_similarity(network: nn.Module, layout: TokenLayout) -> Tensor | None:
    """Cosine similarity of the patches' position embeddings, learned or fixed (Dosovitskiy et al. 2021, figure 7,
    centre): float32 `[patches, patches]`; None if the model adds none to its tokens."""
    positions = getattr(network, "pos_embed", None)
    patches = layout.tokens - layout.prefix
    if not isinstance(positions, Tensor) or positions.ndim != 3 or positions.shape[1] not in (patches, layout.tokens):
        return None
    embeddings = F.normalize(positions.detach()[0, -patches:].float(), dim=1)
    return embeddings @ embeddings.T
