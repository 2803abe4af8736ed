"""The Muon optimizer, and the choice of the parameters that it updates."""

from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Any

import timm.optim
import torch
from timm.models import group_parameters
from timm.optim.muon import get_lr_scale, zeropower_via_newtonschulz
from torch import Tensor, nn

from vitlab.compat import cpu_has_bfloat16, foreach_add_, foreach_lerp_, foreach_mul_, muon_coefficients, suits_muon


class Muon(timm.optim.Muon):
    """timm's Muon, which orthogonalises matrices of one shape together: few large products instead of many small ones.

    On a CPU without bfloat16 instructions the Newton-Schulz iteration runs in float32. timm and torch iterate in
    bfloat16, which such a CPU emulates: one update then takes as long as many training steps.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        gradients: dict[Tensor, Tensor] = {}
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                is_ours = group["algo"] == "muon" and not group.get("use_fallback") and parameter.grad is not None
                if is_ours and parameter.ndim == 2 and suits_muon(parameter):
                    by_shape[parameter.shape].append(parameter)
                    gradients[parameter] = parameter.grad
            for matrices in by_shape.values():
                self._update(matrices, group)

        # timm updates the rest, by AdamW; it passes over parameters without a gradient.
        for matrix in gradients:
            matrix.grad = None
        super().step()  # type: ignore[no-untyped-call]
        for matrix, gradient in gradients.items():
            matrix.grad = gradient
        return loss

    def _update(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """Move matrices of one shape along their orthogonalised momentum."""
        for matrix in matrices:
            if "momentum_buffer" not in self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        gradients: Any = [matrix.grad for matrix in matrices]
        momenta = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        foreach_lerp_(momenta, gradients, 1 - group["momentum"])

        updates = torch.stack(momenta)
        if group["nesterov"]:
            updates = torch.stack(gradients).lerp(updates, group["momentum"])
        emulates_bfloat16 = updates.device.type == "cpu" and not cpu_has_bfloat16()
        directions = zeropower_via_newtonschulz(
            updates,
            group["ns_steps"],
            muon_coefficients(group["ns_coefficients"]),
            **{key: group[key] for key in ("eps", "safety_factor", "scale_eps")},
            dtype=torch.float32 if emulates_bfloat16 else torch.bfloat16,
        )
        scale = get_lr_scale(directions.shape, group["adjust_lr_fn"]) if group["adjust_lr_fn"] else 1.0
        foreach_add_(matrices, list(directions.to(updates.dtype)), alpha=-group["lr"] * scale)


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
