"""Measure training speed, data wait, memory and model FLOPs utilisation."""

from time import perf_counter
from typing import Any

import pytorch_lightning as pl
from torch.distributed.fsdp import FSDPModule

from vitlab.callbacks.checkpointing import SortedCallback
from vitlab.compat import peak_memory, reset_peak_memory
from vitlab.data import Batch
from vitlab.models.execution import forward_flops, peak_flops


class Throughput(SortedCallback):
    """Logs each epoch:

    - `images_per_second`: training images of all ranks, per second outside validation;
    - `data_wait`: the fraction of that time in which no callback and no step runs, and a batch is fetched and augmented
      (on a GPU, until that is queued);
    - `memory_gib`: peak memory so far in GiB, of the GPU or, on a CPU, of the process;
    - `mfu`: model FLOPs utilisation (Chowdhery et al. 2022, "PaLM", appendix B) if the device's peak is known and the
      model is neither sharded nor partly frozen: an image costs three times its forward pass.

    Lightning's ThroughputMonitor measures some of this, under other names, and only into the logger.
    """

    callback_position = -1  # stops the clocks before all other callbacks

    def __init__(self) -> None:
        self.images = 0
        self.seconds = self.waited = 0.0  # of the epoch, up to the clocks' last stop
        self.resumed = self.stepped = perf_counter()  # when they started again
        self.resume = _Resume(self)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if self.resume not in callbacks:
            trainer.callbacks = [*callbacks, self.resume]  # type: ignore[attr-defined]
        super().setup(trainer, pl_module, stage)
        self.peak = peak_flops(trainer.strategy.root_device, str(trainer.precision))
        self.flops: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        reset_peak_memory(trainer.strategy.root_device)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        self.waited += perf_counter() - self.stepped
        network = pl_module.network
        if self.peak and self.flops is None and not isinstance(network, FSDPModule):
            self.flops = 3 * forward_flops(network, batch.images[:1], training=True)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.seconds += perf_counter() - self.resumed

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.resume.is_first_step:  # resumed after the last batch of the epoch
            return
        self.seconds += perf_counter() - self.resumed
        speed = self.images / self.seconds
        values = {"images_per_second": speed, "data_wait": self.waited / self.seconds}
        memory = peak_memory(trainer.strategy.root_device)
        if memory is not None:
            values["memory_gib"] = memory
        all_learn = all(parameter.requires_grad for parameter in pl_module.network.parameters())
        if self.peak and self.flops and all_learn:
            values["mfu"] = self.flops * speed / (self.peak * trainer.world_size)
        pl_module.log_dict(values, sync_dist=True)


class _Resume(pl.Callback):
    """Starts the clocks of Throughput again, after all other callbacks: their time is no time of waiting.

    The first step of a process counts only if the epoch has no other: it may compile the model, and figures follow it.
    """

    callback_position = 5

    def __init__(self, clocks: Throughput) -> None:
        self.clocks = clocks
        self.is_first_step = True

    def on_train_start(self, *_: Any, **__: Any) -> None:  # Lightning announces no start of an epoch that is resumed
        self.clocks.images, self.clocks.seconds, self.clocks.waited = 0, 0.0, 0.0
        self.on_validation_end()

    on_train_epoch_start = on_train_start

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, *_: Any) -> None:
        is_first, self.is_first_step = self.is_first_step, False
        if is_first and not (trainer.is_last_batch or trainer.should_stop):
            self.on_train_start()
            return
        self.clocks.images += len(batch.labels) * trainer.world_size
        self.clocks.stepped = perf_counter()

    def on_validation_end(self, *_: Any) -> None:
        self.clocks.resumed = self.clocks.stepped = perf_counter()
