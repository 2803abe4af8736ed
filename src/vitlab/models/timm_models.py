"""timm's networks, by name."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, get_pretrained_cfg, list_pretrained
from torch import nn

from vitlab.models.last_block import shorten_last_block


def timm_facts(name: str) -> PretrainedCfg:
    """What timm knows of a network and its weights: input size, mean, std, interpolation, classes, where they lie.

    Args:
        name: An architecture, `vit_base_patch16_224`, which means its default weights, or one with the tag of its
            weights, `vit_base_patch16_224.augreg2_in21k_ft_in1k`.

    Raises:
        ValueError: timm has no such architecture or weights; the message names the nearest.
    """
    if not isinstance(name, str) or ":" in name:
        raise ValueError(
            f"{name} is none of timm's names (timm.list_pretrained()); weights from elsewhere: model.weights=<file>"
        )
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(), n=1)
        hint = f". Did you mean '{near[0]}'?" if near else "; timm.list_models() lists what there is"
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
    """A classifier of timm's with random weights: float images `[B, 3, H, W]` -> logits `[B, num_classes]`.

    Nothing is downloaded: the weights come later, from a checkpoint or through `vitlab.weights`. A ViT whose head reads
    the class token computes nothing else in its last block (`vitlab.models.last_block`).

    Args:
        name: As in `timm_facts`.
        num_classes: Width of the logits.
        image_size: Side of the images in pixels, for the networks that must know it.
        dropout, drop_path: timm's `drop_rate` (before the head) and `drop_path_rate`; None leaves them to the network.
        fused_attention: True takes torch's scaled_dot_product_attention, False two matrix products around a softmax,
            None what timm takes (the first, wherever it is to be had); training then takes the faster one.
        kwargs: Further arguments of `timm.create_model`.

    Raises:
        ValueError: there is no such network, or it refuses an argument or the size of the images.
    """
    facts = timm_facts(name)
    arguments = {"num_classes": num_classes, "drop_rate": dropout, "drop_path_rate": drop_path, **(kwargs or {})}
    if facts.fixed_input_size:
        arguments.setdefault("img_size", image_size)
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    except (TypeError, AssertionError, RuntimeError) as error:
        raise ValueError(f"timm's {name} refuses its arguments {arguments}: {error}") from error
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, image_size, image_size))
    except Exception as error:  # each network has its own way of refusing a size
        raise ValueError(f"timm's {name} takes no images of image_size={image_size} px: {error}") from error
    network.train()
    shorten_last_block(network)
    if fused_attention is not None:
        fuse_timm_attention(network, fused_attention)
    return network


def fuse_timm_attention(network: nn.Module, fused: bool) -> None:
    """Chooses the kernel of timm's attention layers, in place: torch's scaled_dot_product_attention, or two matrix
    products around a softmax."""
    for module in network.modules():
        if type(module).__module__.startswith("timm.") and hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", fused)  # noqa: B010 (typed as a submodule otherwise)
