"""How large gradients, weights and updates are, layer by layer."""

import re
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from vitlab.data import Batch

ALL = "all"


class LayerStatistics(pl.Callback):
    """Logs, every `log_every_n_steps` steps, of each layer (patch embedding, each block, head ...) and of all of them:

    - `gradient_norm/<layer>`: before clipping;
    - `weight_norm/<layer>`: before the step;
    - `update_to_weight/<layer>`: the norm of the step over that of the weights; about 1e-3 is healthy;
    - `lr/<layer>`: where layers have learning rates of their own.

    All norms are Euclidean. Between these steps it does nothing, and in them it waits for the device once. Lightning's
    LearningRateMonitor names groups by their number, and looks at them in each step.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # The norms of a sharded network are summed over all ranks, which have to take part.
        here = trainer.is_global_zero or isinstance(pl_module.network, FSDPModule)
        self.watches = here and bool(trainer.loggers)
        self.layers = by_layer(pl_module.network, pl_module.head)
        self.before: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        interval = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not self.watches or (trainer.global_step + 1) % interval:
            return
        self.step = trainer.fit_loop.epoch_loop._batches_that_stepped
        self.before, self.gradients = {}, {}
        self.rates = _rates(optimizer, self.layers)  # at the step's end the schedule has moved
        for name, parameters in self.layers.items():
            moved = [p for p in parameters if p.grad is not None]
            if moved:
                self.before[name] = [(p, p.detach().clone()) for p in moved]
                self.gradients[name] = _norm([p.grad for p in moved if p.grad is not None])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if not self.before:
            return
        weights = {name: _norm([old for _, old in pairs]) for name, pairs in self.before.items()}
        updates = {name: _norm([new.detach() - old for new, old in pairs]) for name, pairs in self.before.items()}
        names = list(self.before)
        table = torch.stack(
            [torch.stack([group[name] for name in names]) for group in (self.gradients, weights, updates)]
        )
        self.before = {}
        table = torch.cat([table, table.norm(dim=1, keepdim=True)], dim=1)
        gradient, weight, update = table.tolist()  # the one time that the host waits
        values: dict[str, float] = {}
        for name, g, w, u in zip([*names, ALL], gradient, weight, update, strict=True):
            values |= {f"gradient_norm/{name}": g, f"weight_norm/{name}": w}
            if w > 0:  # a head may start at zero
                values[f"update_to_weight/{name}"] = u / w
        values |= self.rates
        for logger in trainer.loggers:
            logger.log_metrics(values, step=self.step)


def _norm(tensors: list[Tensor]) -> Tensor:
    norm = get_total_norm(tensors)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def by_layer(network: nn.Module, head: list[str]) -> dict[str, list[nn.Parameter]]:
    """A network's parameters by the layer that they belong to, from the input on.

    The head is one layer; of the rest, each element of a list (`blocks.03`), else each part of the network
    (`patch_embed`).

    Args:
        network: Any.
        head: Names of the head's parameters.
    """
    layers: dict[str, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        match = re.match(r"(\w+?)\.(\d+)\.", name)
        part = f"{match[1]}.{int(match[2]):02d}" if match else name.split(".")[0]
        layers.setdefault("head" if name in head else part, []).append(parameter)
    return layers


def _rates(optimizer: torch.optim.Optimizer, layers: dict[str, list[nn.Parameter]]) -> dict[str, float]:
    groups = optimizer.param_groups
    if len({group["lr_scale"] for group in groups}) == 1:
        return {}
    rate = {id(parameter): float(group["lr"]) for group in groups for parameter in group["params"]}
    return {
        f"lr/{name}": max(rate[id(p)] for p in parameters if id(p) in rate)
        for name, parameters in layers.items()
        if any(id(p) in rate for p in parameters)
    }
