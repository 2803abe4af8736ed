"""How fast training goes."""

import time
from typing import Any

import pytorch_lightning as pl

from vitlab.data import Batch


class ImagesPerSecond(pl.Callback):
    """Logs `images_per_second` each epoch: images trained on by all ranks, over the time outside validation.

    Lightning's ThroughputMonitor measures the same, under names of its own, and into the logger alone.
    """

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.images = 0
        self.seconds = 0.0
        self.resumed = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.images += len(batch.labels) * trainer.world_size

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.seconds += time.perf_counter() - self.resumed

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.resumed = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds += time.perf_counter() - self.resumed
        pl_module.log("images_per_second", self.images / self.seconds, sync_dist=True)
