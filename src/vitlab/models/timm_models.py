"""timm's models by name, and timm's conventions that models of any origin follow."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, get_pretrained_cfg, list_pretrained
from torch import nn

from vitlab.models.last_block import shorten_last_block


def timm_facts(name: str) -> PretrainedCfg:
    """Look up a model and its weights in timm: input size, mean, std, interpolation, classes, address of the file.

    Args:
        name: An architecture such as `vit_base_patch16_224`, which means its default weights, or an architecture with
            the tag of its weights, such as `vit_base_patch16_224.augreg2_in21k_ft_in1k`.

    Raises:
        ValueError: timm has no such architecture or weights; the message names the closest match.
    """
    if not isinstance(name, str) or ":" in name:
        raise ValueError(f"{name} is not in timm.list_pretrained(); for other weights use model.weights=<file>")
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(), n=1)
        hint = f". Did you mean '{near[0]}'?" if near else "; timm.list_models() lists its models"
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
    the class token, the last block computes nothing else (`vitlab.models.last_block`).

    Args:
        name: As in `timm_facts`.
        num_classes: Width of the logits.
        image_size: Side of the images in pixels, for the models that must know it.
        dropout, drop_path: timm's `drop_rate` (before the head) and `drop_path_rate`; None keeps the model's defaults.
        fused_attention: True uses torch's scaled_dot_product_attention, False two matrix products around a softmax,
            None timm's default (the first if available); training then uses the faster one.
        kwargs: Further arguments of `timm.create_model`.

    Raises:
        ValueError: timm has no such model, or the model does not take an argument or the image size.
    """
    facts = timm_facts(name)
    arguments = {"num_classes": num_classes, "drop_rate": dropout, "drop_path_rate": drop_path, **(kwargs or {})}
    if facts.fixed_input_size:
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
    """Set the kernel of timm's attention layers, in place: torch's scaled_dot_product_attention, or two matrix products
    around a softmax."""
    for module in network.modules():
        if type(module).__module__.startswith("timm.") and hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", fused)  # noqa: B010 (typed as a submodule otherwise)


def head_modules(network: nn.Module) -> list[nn.Module]:
    """The layers that compute the logits, from `get_classifier()` (timm's convention); none without that method.

    Models with several heads (DeiT's class and distillation tokens) return them as a tuple.
    """
    get_classifier: Any = getattr(network, "get_classifier", None)
    if get_classifier is None:
        return []
    found = get_classifier()
    modules = found if isinstance(found, tuple | list) else [found]
    return [module for module in modules if any(True for _ in module.parameters())]


def head_names(network: nn.Module) -> list[str]:
    """Names of the head's parameters, as in `network.named_parameters()`."""
    in_head = {id(parameter) for module in head_modules(network) for parameter in module.parameters()}
    return [name for name, parameter in network.named_parameters() if id(parameter) in in_head]
