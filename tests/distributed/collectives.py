"""A callback that counts the calls of torch.distributed in each training step."""

import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch.distributed as dist

CALLS = ("all_reduce", "broadcast", "barrier", "all_gather", "all_gather_object", "reduce", "gather")


class CollectiveCounter(pl.Callback):
    """Writes `collectives.json`: the names of the calls between the starts of two batches. DDP's own are not among
    them: it reduces gradients without Python."""

    def __init__(self) -> None:
        self.steps: list[list[str]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        for name in CALLS:
            setattr(dist, name, self._counted(name, getattr(dist, name)))

    def _counted(self, name: str, call: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.steps:
                self.steps[-1].append(name)
            return call(*args, **kwargs)

        return counted

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.steps.append([])

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            Path("collectives.json").write_text(json.dumps(self.steps))
