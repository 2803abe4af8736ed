"""Fine-tuning strategies: layer-wise learning rates and freezing."""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn


@dataclass(frozen=True)
class Finetuning:
    """A fine-tuning strategy. By default all parameters learn at the same rate.

    Args:
        layer_decay: Ratio of a layer's learning rate to that of the layer above; the head has the optimizer's (Bao et
            al. 2022, "BEiT", appendix; Clark et al. 2020, "ELECTRA", section 3.1). The model's `group_matcher()`
            defines the layers (timm's convention).
        head_lr_multiplier: Ratio of the head's learning rate to the optimizer's.
        bias_lr_multiplier: Ratio of the learning rate of biases and norms (all vectors) to that of the matrices in
            their layer.
        freeze_epochs: Number of first epochs in which only the head learns and the rest is in eval mode; "all" is a
            linear probe.
    """

    layer_decay: float = 1.0
    head_lr_multiplier: float = 1.0
    bias_lr_multiplier: float = 1.0
    freeze_epochs: int | str = 0

    def __post_init__(self) -> None:
        if not isinstance(self.layer_decay, int | float) or not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay} must be above 0 and at most 1 (1: no decay)")
        for name in ("head_lr_multiplier", "bias_lr_multiplier"):
            if not isinstance(value := getattr(self, name), int | float) or value <= 0:
                raise ValueError(f"{name}={value} must be above 0")
        if self.freeze_epochs != "all" and (not isinstance(self.freeze_epochs, int) or self.freeze_epochs < 0):
            raise ValueError(f"freeze_epochs={self.freeze_epochs} must be a whole number of epochs, 0 or more, or all")

    @property
    def needs_head(self) -> bool:
        return self.head_lr_multiplier != 1 or self.freeze_epochs != 0

    def frozen(self, epoch: int) -> bool:
        """Whether only the head learns in an epoch (counted from 0)."""
        return self.freeze_epochs == "all" or epoch < int(self.freeze_epochs)

    def parameter_groups(
        self,
        network: nn.Module,
        head: Collection[str],
        *,
        weight_decay: float,
        no_weight_decay: Collection[str],
        fallback: Collection[str] = (),
    ) -> list[dict[str, Any]]:
        """Group the parameters that learn at some time for an optimizer, each group with its `lr_scale`.

        `head` names the head's parameters; a linear probe has only their groups. Biases, norms and `no_weight_decay`
        have no weight decay; `fallback` get `use_fallback` (timm's Muon). Both are names with wildcards.
        """
        if self.layer_decay < 1:
            groups = param_groups_layer_decay(
                network, weight_decay, no_weight_decay, fallback, layer_decay=self.layer_decay
            )
        else:
            groups = param_groups_weight_decay(
                network, weight_decay, no_weight_decay_list=no_weight_decay, fallback_list=fallback
            )
        head_ids = {id(parameter) for name, parameter in network.named_parameters() if name in head}
        split = []
        for group in groups:
            members: dict[tuple[bool, float], list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                in_head = id(parameter) in head_ids
                scale = self.head_lr_multiplier if in_head else 1.0
                scale *= self.bias_lr_multiplier if parameter.ndim < 2 else 1.0
                if in_head or self.freeze_epochs != "all":
                    members[in_head, scale].append(parameter)
            for (_, scale), parameters in sorted(members.items(), key=lambda item: item[0]):
                split.append({**group, "params": parameters, "lr_scale": group.get("lr_scale", 1.0) * scale})
        return split
