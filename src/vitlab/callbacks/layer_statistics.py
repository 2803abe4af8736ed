"""Log the norms of gradients, weights and updates of each layer."""

import re
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm


class LayerStatistics(pl.Callback):
    """Logs every `log_every_n_steps` steps, for each layer (patch embedding, each block, head ...) and for `all`:

    - `gradient_norm/<layer>`: before clipping;
    - `weight_norm/<layer>`: before the step;
    - `update_to_weight/<layer>`: norm of the step divided by that of the weights; about 1e-3 is healthy;
    - `lr/<layer>`: if layers have different learning rates.

    All norms are Euclidean. It waits for the device once in these steps, and does nothing in the others. Lightning's
    LearningRateMonitor names groups by number and reads them in every step.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # All ranks take part in computing the norms of a sharded model.
        takes_part = trainer.is_global_zero or isinstance(pl_module.network, FSDPModule)
        self.enabled = takes_part and bool(trainer.loggers)
        self.layers = group_by_layer(pl_module.network, pl_module.head)
        self.before: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        interval = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not self.enabled or (trainer.global_step + 1) % interval:
            return
        self.step = trainer.global_step
        self.before, self.gradients = {}, {}
        self.rates = _learning_rates(optimizer, self.layers)  # after the step they are the next step's
        for name, parameters in self.layers.items():
            moved = [p for p in parameters if p.grad is not None]
            if moved:
                self.before[name] = [(p, p.detach().clone()) for p in moved]
                self.gradients[name] = _norm([p.grad for p in moved if p.grad is not None])

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if not self.before:
            return
        weights = [_norm([old for _, old in pairs]) for pairs in self.before.values()]
        updates = [_norm([new.detach() - old for new, old in pairs]) for pairs in self.before.values()]
        names = [*self.before, "all"]
        self.before = {}
        table = torch.stack([torch.stack(norms) for norms in (list(self.gradients.values()), weights, updates)])
        table = torch.cat([table, table.norm(dim=1, keepdim=True)], dim=1)
        values: dict[str, float] = dict(self.rates)
        for name, gradient, weight, update in zip(names, *table.tolist(), strict=True):  # the only wait for the device
            values |= {f"gradient_norm/{name}": gradient, f"weight_norm/{name}": weight}
            if weight > 0:  # a head may start at zero
                values[f"update_to_weight/{name}"] = update / weight
        for logger in trainer.loggers:
            logger.log_metrics(values, step=self.step)


def _norm(tensors: list[Tensor]) -> Tensor:
    norm = get_total_norm(tensors)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def group_by_layer(network: nn.Module, head: list[str]) -> dict[str, list[nn.Parameter]]:
    """Group a model's parameters by layer, in the order of the model.

    The head, of these parameter names, is one layer; others are the elements of lists (`blocks.03`) and the other parts
    of the model (`patch_embed`).
    """
    layers: dict[str, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        match = re.match(r"(\w+?)\.(\d+)\.", name)
        part = f"{match[1]}.{int(match[2]):02d}" if match else name.split(".")[0]
        layers.setdefault("head" if name in head else part, []).append(parameter)
    return layers


def _learning_rates(optimizer: torch.optim.Optimizer, layers: dict[str, list[nn.Parameter]]) -> dict[str, float]:
    groups = optimizer.param_groups
    if len({group["lr_scale"] for group in groups}) == 1:
        return {}
    rate = {parameter: float(group["lr"]) for group in groups for parameter in group["params"]}
    found = {f"lr/{name}": [rate[p] for p in parameters if p in rate] for name, parameters in layers.items()}
    return {name: max(rates) for name, rates in found.items() if rates}
