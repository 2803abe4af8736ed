"""Which parameters learn, how fast, and from when on."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn


@dataclass(frozen=True)
class Finetuning:
    """A fine-tuning strategy. The default is the plain one: all parameters learn at one rate.

    Args:
        layer_decay: Learning rate of a layer as a fraction of that of the layer above; the head has the optimizer's
            (Bao et al. 2022, "BEiT", appendix; Clark et al. 2020, "ELECTRA", section 3.1). The layers are what the
            network's `group_matcher()` says (timm's convention).
        head_lr_multiplier: Learning rate of the head as a multiple of the optimizer's.
        freeze_epochs: For so many epochs only the head learns, and the rest is in eval mode; "all" is a linear probe.

    Raises:
        ValueError: a value is out of its range.
    """

    layer_decay: float = 1.0
    head_lr_multiplier: float = 1.0
    freeze_epochs: int | str = 0

    def __post_init__(self) -> None:
        if not isinstance(self.layer_decay, int | float) or not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay} must be above 0 and at most 1 (1: no decay)")
        if not isinstance(self.head_lr_multiplier, int | float) or self.head_lr_multiplier <= 0:
            raise ValueError(f"head_lr_multiplier={self.head_lr_multiplier} must be above 0")
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
        """Groups for an optimizer of the parameters that learn at some time, each with its `lr_scale`.

        Biases, norms and what `no_weight_decay` names have no weight decay. A linear probe's groups are the head's.

        Args:
            network: Whose parameters they are.
            head: Names of the head's parameters.
            weight_decay: Of the groups that have one.
            no_weight_decay: Names of further parameters without, with wildcards.
            fallback: Names of parameters whose groups have `use_fallback`, as Muon wants it, with wildcards.
        """
        if self.layer_decay < 1:
            groups = param_groups_layer_decay(
                network, weight_decay, no_weight_decay, fallback, layer_decay=self.layer_decay
            )
        else:
            groups = param_groups_weight_decay(
                network, weight_decay, no_weight_decay_list=no_weight_decay, fallback_list=fallback
            )
        own = {id(parameter) for name, parameter in network.named_parameters() if name in head}
        split = []
        for group in groups:
            scale = group.get("lr_scale", 1.0)
            in_head = [parameter for parameter in group["params"] if id(parameter) in own]
            others = [parameter for parameter in group["params"] if id(parameter) not in own]
            if self.freeze_epochs != "all":
                split.append({**group, "params": others, "lr_scale": scale})
            split.append({**group, "params": in_head, "lr_scale": scale * self.head_lr_multiplier})
        return [group for group in split if group["params"]]
