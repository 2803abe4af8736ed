"""The Muon optimizer, and the choice of the parameters that it updates."""

from collections.abc import Callable, Collection
from contextlib import nullcontext
from typing import Any

import timm.optim
import torch
from timm.models import group_parameters
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitlab.compat import cpu_has_bfloat16


class Muon(timm.optim.Muon):
    """timm's Muon. On a CPU without bfloat16 instructions, its Newton-Schulz iteration runs in float32.

    timm and torch iterate in bfloat16, which such a CPU emulates: one update then takes as long as many training steps.
    """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        on_cpu = self.param_groups[0]["params"][0].device.type == "cpu"
        with _IterateInFloat32() if on_cpu and not cpu_has_bfloat16() else nullcontext():
            super().step()  # type: ignore[no-untyped-call]
        return loss


class _IterateInFloat32(TorchFunctionMode):
    """Turn the copy to bfloat16 with which timm's iteration begins into one to float32 (timm 1.0.31).

    timm's `zeropower_via_newtonschulz` takes a dtype, but no argument of the optimizer sets it.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.to and kwargs == {"dtype": torch.bfloat16, "copy": True}:
            kwargs["dtype"] = torch.float32
        return func(*args, **kwargs)


def adamw_param_names(optimizer: Any, network: nn.Module, head: Collection[str]) -> set[str]:
    """Name the parameters, with wildcards, that Muon leaves to AdamW; none if `optimizer`, a partial, is not Muon.

    Muon updates only the weight matrices of the hidden layers, here the blocks. AdamW updates the first and last layer
    (`head`) and the embeddings (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon). The first layer is the
    lowest one of the model's `group_matcher()` (timm's convention).
    """
    if getattr(optimizer, "func", None) is not Muon:
        return set()
    matcher: Any = getattr(network, "group_matcher", None)
    layers: Any = group_parameters(network, matcher(), reverse=True) if matcher else {}
    stem = {name for name, layer in layers.items() if layer == 0}
    embeddings: Any = getattr(network, "no_weight_decay", set)
    not_matrices = {name for name, parameter in network.named_parameters() if parameter.ndim != 2}
    return {*head, *stem, *embeddings(), *not_matrices}
