"""Muon, and which parameters it updates."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any
from unittest.mock import patch

import timm.optim
import torch
from timm.models import group_parameters
from timm.optim import muon as timms
from torch import nn


class Muon(timm.optim.Muon):
    """timm's, which iterates in bfloat16 (so does torch's), here in float32 on a CPU without instructions for that: it
    takes the time of many training steps there, for torch computes bfloat16 products in software."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        has_bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        if self.param_groups[0]["params"][0].device.type != "cpu" or has_bf16:
            return super().step(closure)  # type: ignore[no-untyped-call]
        exact = partial(timms.zeropower_via_newtonschulz, dtype=torch.float32)
        with patch.object(timms, "zeropower_via_newtonschulz", exact):  # no argument of Muon's own reaches its dtype
            return super().step(closure)  # type: ignore[no-untyped-call]


def adamw_param_names(optimizer: Any, network: nn.Module, head: Collection[str]) -> set[str]:
    """Names, with wildcards, of the parameters that Muon updates by AdamW; none where `optimizer` is another.

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
