"""The attention weights of a ViT, of ours and of timm's, whichever kernel computes them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitlab.models.last_block import full_output
from vitlab.models.pooling import SequencePooling
from vitlab.models.vision_transformer import VisionTransformer

SOFTMAXES = (torch.softmax, Tensor.softmax, F.softmax)


@dataclass(frozen=True)
class TokenLayout:
    """What a ViT's tokens stand for.

    Attributes:
        prefix: Tokens before the patches: class, distillation and register tokens.
        grid: Rows and columns of patches, which follow row by row.
        read: The tokens that the head reads: the class token (and the distillation token), or those it pools.
    """

    prefix: int
    grid: tuple[int, int]
    read: slice

    @property
    def tokens(self) -> int:
        return self.prefix + self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class Attention:
    """What each head of each block attends to.

    Attributes:
        weights: float32 `[depth, B, heads, tokens, tokens]`; rows, one a query, sum to 1.
        logits: float32 `[B, classes]`.
        layout: What the tokens stand for.
        pooling: How much of each token the head reads, float32 `[B, tokens]`; rows sum to 1.
    """

    weights: Tensor
    logits: Tensor
    layout: TokenLayout
    pooling: Tensor


def record_attention(network: nn.Module, images: Tensor) -> Attention | None:
    """What each head of each block attends to.

    Args:
        network: In eval mode and float32; it is left as it is.
        images: float32 `[B, 3, H, W]`, on the network's device.

    Returns:
        None where not each block has one attention among all tokens of an image, given by a softmax: a CNN, Swin's
        windows, ConViT's gated positions.
    """
    with torch.no_grad():
        return _record(network, images)


def attention_gradients(network: nn.Module, images: Tensor, classes: Tensor) -> tuple[Attention, Tensor] | None:
    """As `record_attention`, and the gradient of each image's logit of a class with respect to the weights.

    Args:
        network: In eval mode and float32; it is left as it is, its parameters' gradients too.
        images: float32 `[B, 3, H, W]`, on the network's device.
        classes: int64 `[B]`.

    Returns:
        The attention, and the gradients, float32 `[depth, B, heads, tokens, tokens]`.
    """
    with torch.enable_grad():
        # The weights are part of the graph whether or not the network's parameters learn.
        layers: list[Tensor] = []
        found = _record(network, images.detach().requires_grad_(), layers)
        if found is None:
            return None
        chosen = found.logits.gather(1, classes.unsqueeze(1)).sum()
        gradients = torch.autograd.grad(chosen, layers)
    detached = Attention(found.weights.detach(), found.logits.detach(), found.layout, found.pooling.detach())
    return detached, torch.stack(gradients)


def token_layout(network: nn.Module, image_size: tuple[int, int]) -> TokenLayout | None:
    """What the tokens of a network stand for at an image size (pixels), where it is a ViT of ours or of timm's."""
    if isinstance(network, VisionTransformer):
        prefix = network.num_prefix_tokens
        return TokenLayout(prefix, network.grid_size, slice(prefix, None) if network.cls_token is None else slice(0, 1))
    own: Any = network
    feature_size = getattr(getattr(own, "patch_embed", None), "dynamic_feat_size", None)
    if feature_size is None or not hasattr(own, "num_prefix_tokens"):
        return None
    rows, columns = feature_size(image_size)
    if getattr(own, "global_pool", "") == "token":
        read = slice(0, 2 if hasattr(own, "head_dist") else 1)  # DeiT's distilled networks have two heads
    else:
        read = slice(0 if getattr(own, "pool_include_prefix", False) else own.num_prefix_tokens, None)
    return TokenLayout(own.num_prefix_tokens, (rows, columns), read)


def _record(network: nn.Module, images: Tensor, layers: list[Tensor] | None = None) -> Attention | None:
    height, width = images.shape[-2:]
    layout = token_layout(network, (height, width))
    if layout is None:
        return None
    layers = [] if layers is None else layers
    recorder = _Recorder(layers, len(images), layout.tokens)
    with full_output(network), recorder, _pooling(network, layout, images) as pooling:
        # Not network(images), which is what torch.compile has replaced.
        logits = network.forward(images)
    depth = len(network.blocks)  # type: ignore[arg-type]
    if len(layers) != depth or len({layer.shape for layer in layers}) > 1:  # what flows past them would be left out
        return None
    return Attention(torch.stack(layers), logits.float(), layout, pooling)


@contextmanager
def _pooling(network: nn.Module, layout: TokenLayout, images: Tensor) -> Iterator[Tensor]:
    """How much of each token the head reads, `[B, tokens]`: complete when the network has run."""
    pooling = torch.zeros(len(images), layout.tokens, device=images.device)
    pooling[:, layout.read] = 1 / len(range(layout.tokens)[layout.read])
    if not isinstance(network, VisionTransformer) or network.attn_pool is None:
        yield pooling
        return

    def keep(module: SequencePooling, arguments: tuple[Tensor], _: Tensor) -> None:
        pooling[:, layout.read] = module.weights(*arguments).detach().float()

    handle = network.attn_pool.register_forward_hook(keep)
    try:
        yield pooling
    finally:
        handle.remove()


class _Recorder(TorchFunctionMode):
    """Sees the functions of torch that a network calls, not the modules that call them: so rotary and relative
    positions, norms of queries and keys, and scales of any kind are in the weights as they are in the network."""

    def __init__(self, layers: list[Tensor], batch: int, tokens: int) -> None:
        super().__init__()
        self.layers = layers
        self.batch = batch
        self.tokens = tokens

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and self._is_among_tokens(*args[:2]):
            return self._attend(*args, **kwargs)
        result = func(*args, **kwargs)
        if func in SOFTMAXES and result.ndim == 4 and result.shape[-1] == self.tokens and self._is_among_tokens(result):
            return self._keep(result.float()).to(result.dtype)
        return result

    def _is_among_tokens(self, *tensors: Tensor) -> bool:
        """Whether tensors `[B, heads, tokens, ...]` are of an attention among all tokens of each image."""
        return all(
            tensor.shape == tensors[0].shape and tensor.shape[0] == self.batch and tensor.shape[-2] == self.tokens
            for tensor in tensors
        )

    def _keep(self, weights: Tensor) -> Tensor:
        self.layers.append(weights)
        return weights  # what the network goes on with: its logits have a gradient with respect to them

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        """torch's scaled_dot_product_attention, with its weights written down."""
        scale = options.get("scale") or query.shape[-1] ** -0.5
        scores = (query.float() * scale) @ key.float().transpose(-2, -1)
        if attn_mask is not None:
            scores = scores + attn_mask  # timm's relative positions
        return self._keep(scores.softmax(dim=-1)).to(value.dtype) @ value
