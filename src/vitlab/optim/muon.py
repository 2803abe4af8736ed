"""Which parameters Muon updates."""

from collections.abc import Collection
from typing import Any

from timm.models import group_parameters
from timm.optim import Muon
from torch import nn


def left_to_adamw(optimizer: Any, network: nn.Module, head: Collection[str]) -> set[str]:
    """Names, with wildcards, of the parameters that timm's Muon updates by AdamW; none where `optimizer` is another.

    Muon is for the weight matrices of the hidden layers alone, here the blocks; the first and the last layer and
    embeddings are AdamW's (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon). The stem is what the
    network's `group_matcher()` calls its lowest layer (timm's convention).

    Args:
        optimizer: A partial, as the config builds it.
        network: Whose parameters they are.
        head: Names of the head's parameters.
    """
    if getattr(optimizer, "func", None) is not Muon:
        return set()
    matcher: Any = getattr(network, "group_matcher", None)
    layers: Any = group_parameters(network, matcher(), reverse=True) if matcher else {}
    stem = {name for name, layer in layers.items() if layer == 0}
    embeddings: Any = getattr(network, "no_weight_decay", set)
    shapes = {name for name, parameter in network.named_parameters() if parameter.ndim != 2}
    return {*head, *stem, *embeddings(), *shapes}
