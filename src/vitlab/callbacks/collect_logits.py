"""The logits of an evaluation, image by image."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from vitlab.data import Batch


class CollectLogits(pl.Callback):
    """Keeps what an evaluation computed, on the CPU, in the order of the split: `logits` float32 `[N, classes]` and the
    images' places `index`, int64 `[N]`, ascending."""

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Tensor]] = []

    def keep(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._batches.append((outputs.cpu(), batch.indices.cpu()))

    on_validation_batch_end = keep
    on_test_batch_end = keep

    @property
    def logits(self) -> Tensor:
        return torch.cat([logits for logits, _ in self._batches])[self._places().argsort()]

    @property
    def index(self) -> Tensor:
        return self._places().sort().values

    def _places(self) -> Tensor:
        return torch.cat([places for _, places in self._batches])
