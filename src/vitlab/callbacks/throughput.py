"""How fast training goes, and what holds it up."""

from time import perf_counter
from typing import Any

import pytorch_lightning as pl
from torch.distributed.fsdp import FSDPModule

from vitlab.data import Batch
from vitlab.memory import peak_memory, reset_peak_memory
from vitlab.models.flops import forward_flops, peak_flops


class Throughput(pl.Callback):
    """Logs each epoch:

    - `images_per_second`: images trained on by all ranks, over the time outside validation;
    - `data_wait`: the share of that time between one step's end and the next one's start, in which a batch is fetched
      and augmented (on a GPU, the time until that is queued);
    - `memory_gib`: the most memory so far in GiB, of the GPU or, on a CPU, of the process;
    - `mfu`: model FLOPs utilisation (Chowdhery et al. 2022, "PaLM", appendix B), where the device's peak is known, and
      the network is not sharded: an image costs its forward pass three times over.

    Lightning's ThroughputMonitor measures some of this, under names of its own, and into the logger alone.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.peak = peak_flops(trainer.strategy.root_device, str(trainer.precision))

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.flops: int | None = None
        reset_peak_memory(trainer.strategy.root_device)
        self._begin()  # of an epoch that is gone on with, Lightning does not announce the start

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin()

    def _begin(self) -> None:
        self.images = 0
        self.seconds = self.waited = 0.0
        self.resumed = self.stepped = perf_counter()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        self.waited += perf_counter() - self.stepped
        if self.peak and self.flops is None and not isinstance(pl_module.network, FSDPModule):
            self.flops = 3 * forward_flops(pl_module.network, batch.images[:1], training=True)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.images += len(batch.labels) * trainer.world_size
        self.stepped = perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.seconds += perf_counter() - self.resumed

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.resumed = self.stepped = perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds += perf_counter() - self.resumed
        speed = self.images / self.seconds
        figures = {"images_per_second": speed, "data_wait": self.waited / self.seconds}
        memory = peak_memory(trainer.strategy.root_device)
        if memory is not None:
            figures["memory_gib"] = memory
        if self.peak and self.flops:
            figures["mfu"] = self.flops * speed / (self.peak * trainer.world_size)
        pl_module.log_dict(figures, sync_dist=True)
