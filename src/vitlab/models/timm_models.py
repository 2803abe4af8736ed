"""timm's models by name, and timm's conventions that other models follow too."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import timm
import torch
from timm.layers import Attention
from timm.models import PretrainedCfg, get_pretrained_cfg, list_pretrained
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from vitlab.errors import nearest
from vitlab.models.attention import attend, project_qkv
from vitlab.models.vision_transformer import DropPath


def timm_facts(name: str) -> PretrainedCfg:
    """Look up a model and its weights in timm: input size, mean, std, interpolation, classes, address of the file.

    `name` is an architecture such as `vit_base_patch16_224`, which means its default weights, or has the tag of its
    weights too, such as `vit_base_patch16_224.augreg2_in21k_ft_in1k`. For an unknown one, a ValueError names the
    closest match.
    """
    if not isinstance(name, str) or ":" in name:
        raise ValueError(f"{name} is not in timm.list_pretrained(); for other weights use model.weights=<file>")
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        hint = nearest(architecture, timm.list_models()) or "; timm.list_models() lists its models"
        raise ValueError(f"timm has no model '{architecture}'{hint}")
    try:
        facts = get_pretrained_cfg(name)
    except RuntimeError:
        facts = None
    if facts is None or (tag and facts.tag != tag):
        tags = ", ".join(known.partition(".")[2] for known in list_pretrained(f"{architecture}.*"))
        raise ValueError(f"timm has no weights '{tag}' of {architecture}; it has {tags or 'none'}")
    return facts


def timm_model(
    name: str,
    *,
    num_classes: int,
    image_size: int,
    dropout: float | None = None,
    drop_path: float | None = None,
    fused_attention: bool | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Create a classifier of timm's with random weights: float images `[B, 3, H, W]` -> logits `[B, num_classes]`.

    Nothing is downloaded: the weights come later, from a checkpoint or through `vitlab.weights`. If the head reads only
    the class token, the last block computes nothing else (`LastBlock`). Raises a ValueError if timm has no such model,
    or the model does not take an argument or the image size.

    Args:
        name: As in `timm_facts`.
        image_size: Side of the images in pixels, for the models that must know it.
        dropout, drop_path: timm's `drop_rate` (before the head) and `drop_path_rate`; None keeps the model's defaults.
        fused_attention: See `SelfAttention`; None is timm's default (fused if available), and the faster in training.
        kwargs: Further arguments of `timm.create_model`.
    """
    if "checkpoint_path" in (kwargs or {}):  # timm's reader would run code in it
        raise ValueError("kwargs.checkpoint_path: pass the file with model.weights=<file>")
    arguments = {"num_classes": num_classes, "drop_rate": dropout, "drop_path_rate": drop_path, **(kwargs or {})}
    if timm_facts(name).fixed_input_size:
        arguments.setdefault("img_size", image_size)
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    except (TypeError, AssertionError, RuntimeError) as error:
        raise ValueError(f"timm's {name} does not take the arguments {arguments}: {error}") from error
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, image_size, image_size))
    except Exception as error:  # each model fails in its own way
        raise ValueError(f"timm's {name} takes no images of image_size={image_size} px: {error}") from error
    network.train()
    shorten_last_block(network)
    if fused_attention is not None:
        fuse_timm_attention(network, fused_attention)
    return network


def fuse_timm_attention(network: nn.Module, fused: bool) -> None:
    """Set the kernel of timm's attention layers, in place; see `SelfAttention`."""
    for module in network.modules():
        if type(module).__module__.startswith("timm.") and hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", fused)  # noqa: B010 (typed as a submodule otherwise)


def share_drop_path(blocks: nn.Module) -> None:
    """Put our DropPath in the place of timm's, so that compiled blocks share a graph."""
    for block in blocks.children():
        for name, module in block.named_children():
            if isinstance(module, timm.layers.DropPath):
                setattr(block, name, DropPath(module.drop_prob))


def head_modules(network: nn.Module) -> list[nn.Module]:
    """The layers that compute the logits, from `get_classifier()` (timm's convention); none without that method."""
    get_classifier: Any = getattr(network, "get_classifier", None)
    if get_classifier is None:
        return []
    found = get_classifier()
    modules = found if isinstance(found, tuple | list) else [found]  # DeiT has two heads
    return [module for module in modules if any(True for _ in module.parameters())]


def head_names(network: nn.Module) -> list[str]:
    """Names of the head's parameters, as in `network.named_parameters()`."""
    in_head = {id(parameter) for module in head_modules(network) for parameter in module.parameters()}
    return [name for name, parameter in network.named_parameters() if id(parameter) in in_head]


class LastBlock(nn.Module):
    """timm's pre-norm block, with only the first output tokens (None: all): `[B, N, D]` -> `[B, num_output_tokens, D]`.

    Parameters, their names, logits and gradients are those of timm's `Block` and `Attention` (timm 1.0.31).
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
    """Put a `LastBlock` into timm's plain and distilled ViTs, in place, if the head reads no patch; `full_output` still
    gives those. Another pooling (`reset_classifier`) needs a model that was not shortened."""
    if type(network) not in (VisionTransformer, VisionTransformerDistilled) or network.global_pool != "token":
        return
    blocks: Any = network.blocks
    for last in blocks[-1:]:
        if type(last) is Block and type(last.attn) is Attention:
            blocks[-1] = LastBlock(last, 2 if isinstance(network, VisionTransformerDistilled) else 1)


@contextmanager
def full_output(network: nn.Module) -> Iterator[None]:
    """Let the last block, timm's or ours, compute all tokens meanwhile, not only those that the head reads."""
    blocks: Any = getattr(network, "blocks", [])
    counts = [(block, block.num_output_tokens) for block in blocks[-1:] if hasattr(block, "num_output_tokens")]
    for block, _ in counts:
        block.num_output_tokens = None
    try:
        yield
    finally:
        for block, count in counts:
            block.num_output_tokens = count
