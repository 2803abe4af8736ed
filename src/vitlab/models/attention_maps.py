"""Record the attention weights of a ViT, ours or timm's, with any kernel."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitlab.models.last_block import full_output
from vitlab.models.vision_transformer import VisionTransformer

SOFTMAXES = (torch.softmax, Tensor.softmax, F.softmax)


@dataclass(frozen=True)
class TokenLayout:
    """The meaning of a ViT's tokens.

    Attributes:
        prefix: Number of tokens before the patches: class, distillation and register tokens.
        grid: Rows and columns of patches, which follow row by row.
        head_tokens: The tokens that the head reads: the class token (and the distillation token), or those it pools.
    """

    prefix: int
    grid: tuple[int, int]
    head_tokens: slice

    @property
    def tokens(self) -> int:
        return self.prefix + self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class Attention:
    """Attention of every head of every block.

    Attributes:
        weights: float32 `[depth, B, heads, tokens, tokens]`; each row, of one query, sums to 1.
        logits: float32 `[B, classes]`.
        layout: The meaning of the tokens.
        pooling: Weight of each token in the head's input, float32 `[B, tokens]`; rows sum to 1.
    """

    weights: Tensor
    logits: Tensor
    layout: TokenLayout
    pooling: Tensor


def record_attention(network: nn.Module, images: Tensor) -> Attention | None:
    """Run a model and record the attention of every head of every block.

    Args:
        network: In eval mode and float32; it is not changed.
        images: float32 `[B, 3, H, W]`, on the model's device.

    Returns:
        None unless every block has one softmax attention among all tokens of an image. A CNN, Swin's windows and
        ConViT's gated positions do not.
    """
    with torch.no_grad():
        found = _record(network, images)
    return found[0] if found else None


def attention_gradients(network: nn.Module, images: Tensor, classes: Tensor) -> tuple[Attention, Tensor] | None:
    """As `record_attention`, also with the gradient of one logit per image with respect to the attention weights.

    Args:
        network: In eval mode and float32; neither it nor its parameters' gradients are changed.
        images: float32 `[B, 3, H, W]`, on the model's device.
        classes: int64 `[B]`, the logits' classes.

    Returns:
        The attention, and the gradients, float32 `[depth, B, heads, tokens, tokens]`.
    """
    with torch.enable_grad():
        # Images that require a gradient put the weights into the graph even if all parameters are frozen.
        found = _record(network, images.detach().requires_grad_())
        if found is None:
            return None
        attention, layers = found
        gradients = torch.autograd.grad(attention.logits.gather(1, classes.unsqueeze(1)).sum(), layers)
    detached = replace(attention, weights=attention.weights.detach(), logits=attention.logits.detach())
    return detached, torch.stack(gradients)


def token_layout(network: nn.Module, image_size: tuple[int, int]) -> TokenLayout | None:
    """Describe a model's tokens at an image size (pixels); None unless it is a ViT, ours or timm's."""
    if isinstance(network, VisionTransformer):
        prefix = network.num_prefix_tokens
        return TokenLayout(prefix, network.grid_size, slice(prefix, None) if network.cls_token is None else slice(0, 1))
    own: Any = network
    feature_size = getattr(getattr(own, "patch_embed", None), "dynamic_feat_size", None)
    if feature_size is None or not hasattr(own, "num_prefix_tokens"):
        return None
    rows, columns = feature_size(image_size)
    if getattr(own, "global_pool", "") == "token":
        head_tokens = slice(0, 2 if hasattr(own, "head_dist") else 1)  # distilled DeiTs have two heads
    else:
        head_tokens = slice(0 if getattr(own, "pool_include_prefix", False) else own.num_prefix_tokens, None)
    return TokenLayout(own.num_prefix_tokens, (rows, columns), head_tokens)


def _record(network: nn.Module, images: Tensor) -> tuple[Attention, list[Tensor]] | None:
    """The attention, and the weights of each block as they are in the graph of the logits."""
    height, width = images.shape[-2:]
    layout = token_layout(network, (height, width))
    if layout is None:
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
    """Watch the torch functions that a model calls, not its modules.

    The recorded weights thus include rotary and relative positions, norms of queries and keys, and scales of any kind.
    """

    def __init__(self, batch: int, layout: TokenLayout) -> None:
        super().__init__()
        self.batch = batch
        self.layout = layout
        self.layers: list[Tensor] = []
        self.pooling: Any = None  # weights of a SequencePooling, `[B, patches]`

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tokens = self.layout.tokens
        if func is F.scaled_dot_product_attention and self._covers_all_tokens(*args[:2]):
            return self._attend(*args, **kwargs)
        result = func(*args, **kwargs)
        if func in SOFTMAXES and self._covers_all_tokens(result) and result.shape[-1] == tokens:
            return self._keep(result.float()).to(result.dtype)
        if func in SOFTMAXES and result.shape == (self.batch, tokens - self.layout.prefix):
            self.pooling = result.detach().float()
        return result

    def _covers_all_tokens(self, *tensors: Tensor) -> bool:
        """Whether all tensors have the same shape `[B, heads, tokens, ...]`."""
        shape = tensors[0].shape
        same = all(tensor.shape == shape for tensor in tensors)
        return same and len(shape) == 4 and shape[0] == self.batch and shape[2] == self.layout.tokens

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
