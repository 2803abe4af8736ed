"""Estimates of what the run will cost: compute, time, memory and disk."""

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer
from torch import nn
from torch.optim import Optimizer

from vitlab.callbacks import EMA, BestCheckpoint, Features, Figures, LastCheckpoint, PatchDropoutStages
from vitlab.callbacks.ema import AuxiliaryLogits
from vitlab.compat import is_compiled, peak_memory, reset_peak_memory, synchronize
from vitlab.models.execution import forward_flops, limited
from vitlab.preflight.context import CheckContext, CheckResult, failed, ok
from vitlab.runs.console import format_duration, show

TIMED_SECONDS = 0.5  # about the longest step to time on a CPU
MEASURED_SECONDS = 2.0  # of the first steps of a training
# Measured on a core of an AMD EPYC: callbacks, logging and Lightning per batch; figures and report of a run.
BATCH_SECONDS, FIGURE_SECONDS, END_SECONDS = 0.004, 3.0, 0.3
SAVED, SAVED_PER_SECOND = (BestCheckpoint, LastCheckpoint), 3e8  # bytes of a checkpoint, on a plain disk
KEPT_FILES = 3  # best.ckpt, last.ckpt, and one of them while it is rewritten


def compute(context: CheckContext) -> CheckResult:
    """Parameters, and multiply-adds of one image's forward pass."""
    parameters = sum(p.numel() for p in context.network.parameters())
    macs = forward_flops(context.network, context.plain_images(1)) / 2
    return ok(f"{parameters / 1e6:,.1f} M parameters, {macs / 1e9:,.2f} G multiply-adds per image (forward)")


def speed(context: CheckContext) -> CheckResult | None:
    """Images per second of training steps, and the duration of the run; None if `TimeEstimate` tells it later."""
    if not context.times_steps:
        return None
    trial, batch = context.recipe, context.batch
    trial.classifier.train()
    world_size, on_gpu = max(context.trainer.world_size, 1), context.device.type != "cpu"
    share = len(batch.labels) // world_size
    count = share if on_gpu else min(share, max(8, int(TIMED_SECONDS / trial.seconds_per_image)))
    images, labels = batch.images[:count], batch.labels[:count]

    def train() -> None:
        context.gradients(trial.classifier, images, labels)
        context.clip(trial.optimizer)
        trial.optimizer.step()

    @torch.no_grad()
    def evaluate() -> None:
        context.logits(trial.classifier.network.eval(), context.plain_images(count))
        trial.classifier.network.train()

    def run(action: Callable[[], object], number: int) -> float:
        started = time.perf_counter()
        for _ in range(number):
            action()
        synchronize(context.device)
        return time.perf_counter() - started

    def seconds_per_image(action: Callable[[], object], number: int, of: int) -> float:
        run(action, 1)  # the first of a size is slower
        return run(action, number) / (number * of * world_size)

    reset_peak_memory(context.device)
    times = {
        "train": seconds_per_image(train, 5 if on_gpu else 2, count),
        "evaluate": seconds_per_image(evaluate, 2, count),
        "fetch": seconds_per_image(lambda: context.data.first_batch(context.device), 2, len(batch.labels)),
    }
    note = ", before torch.compile" if any(map(is_compiled, context.classifier.modules())) else ""
    return ok(describe_duration(context, _checkpoint_bytes(context), note=note, **times))


class TimeEstimate(pl.Callback):
    """Says how long the run takes, after its first steps: on a CPU, timing copies of them would delay the start."""

    def __init__(self, context: CheckContext) -> None:
        self.context: CheckContext | None = replace(context)  # without the trained copies
        self.starts: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if self.context is None:
            return
        self.starts.append(time.perf_counter())
        seconds = self.starts[-1] - self.starts[1] if len(self.starts) > 2 else 0.0  # the first step is slower
        if seconds > MEASURED_SECONDS:
            train = max(seconds / (len(self.starts) - 2) - BATCH_SECONDS, 0.0) / self.context.data.batch_size
            saved = _size(trainer, pl_module.network, trainer.optimizers[0])
            # A training step costs three forward passes.
            show(describe_duration(self.context, saved, train=train, evaluate=train / 3, fetch=0.0))
            self.context = None

    def on_validation_start(self, *_: Any) -> None:
        self.starts.clear()


def describe_duration(
    context: CheckContext, checkpoint_bytes: int, train: float, evaluate: float, fetch: float, note: str = ""
) -> str:
    """The speed in images per second, with a note, and the time that the run will take; from the seconds per image."""
    trainer, data = context.trainer, context.data
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(callback, PatchDropoutStages) for callback in callbacks):
        note += ", until callbacks.patch_dropout_stages changes it"
    # An epoch: steps, validations, checkpoints.
    batches = limited(len(data.splits["train"]) // data.batch_size, trainer.limit_train_batches)
    interval = trainer.val_check_interval
    validations = (1 / interval if isinstance(interval, float) else batches / interval) if interval else 1.0
    validations /= trainer.check_val_every_n_epoch or 1
    known = sum(len(data.splits["train"].rows[: c.knn_images]) for c in callbacks if isinstance(c, Features)) * evaluate
    evaluate *= 1 + sum(isinstance(c, AuxiliaryLogits) for c in callbacks)
    val, test = (
        limited(len(data.splits[split]), limit, data.eval_batch_size) * evaluate
        for split, limit in (("val", trainer.limit_val_batches), ("test", trainer.limit_test_batches))
    )
    saved = sum(1 / c.every_n_epochs if isinstance(c, LastCheckpoint) else 1 for c in callbacks if isinstance(c, SAVED))
    per_batch = data.batch_size * (train + fetch) + BATCH_SECONDS
    epoch = batches * per_batch + validations * val + saved * checkpoint_bytes / SAVED_PER_SECOND
    # Before and after training.
    draws = any(isinstance(c, Figures) and c.level != "off" for c in callbacks)
    around = (
        time.perf_counter() - context.started + test + (known if test else 0) + END_SECONDS + FIGURE_SECONDS * draws
    )

    totals = []
    if trainer.max_epochs and trainer.max_epochs > 0:
        totals.append(trainer.max_epochs * batches)
    if context.classifier.max_steps > 0:
        totals.append(context.classifier.max_steps * trainer.accumulate_grad_batches)
    timers = [callback.time_remaining() for callback in callbacks if isinstance(callback, Timer)]
    limit = min((seconds for seconds in timers if seconds is not None), default=None)
    figure = f"{data.batch_size / per_batch:,.0f} training images per second{note}"
    if not totals:
        return figure if limit is None else f"{figure}: about {limit / epoch:.2g} epochs in {format_duration(limit)}"
    total = min(totals)
    seconds = epoch * total / max(batches, 1)
    if limit is not None and limit < seconds:
        fraction = f"about {limit / seconds:.0%} of it"
        return f"{figure}: trainer.max_time stops the run after {format_duration(limit)}, {fraction}"
    duration = format_duration(seconds + around)
    return (
        f"{figure}: about {duration} in all, for {total:,} batches of {data.batch_size}, validation, test and figures"
    )


def memory(context: CheckContext) -> CheckResult | None:
    """Peak memory of the timed steps on a CUDA GPU, memory held by Apple's, else peak of the process."""
    peak = peak_memory(context.device)
    if context.device.type == "cuda":
        total = torch.cuda.get_device_properties(context.device).total_memory / 2**30
        return ok(f"{peak:.1f} of {total:.0f} GiB on the GPU, including this check's copies")
    return None if peak is None else ok(f"{peak:.1f} GiB at most so far")


def disk(context: CheckContext) -> CheckResult:
    """The checkpoints fit onto the disk of the run."""
    size = _checkpoint_bytes(context)
    free = shutil.disk_usage(context.trainer.default_root_dir).free
    figure = f"checkpoints of {size / 1e6:,.0f} MB, up to {KEPT_FILES} at a time; {free / 1e9:,.1f} GB free"
    if KEPT_FILES * size > free:
        return failed(figure, "the checkpoints would not fit: free some space, or set hydra.run.dir to another disk")
    return ok(figure)


def _checkpoint_bytes(context: CheckContext) -> int:
    return _size(context.trainer, context.recipe.classifier.network, context.recipe.optimizer)


def _size(trainer: pl.Trainer, network: nn.Module, optimizer: Optimizer) -> int:
    averaged = any(isinstance(callback, EMA) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    tensors = [*network.state_dict().values()] * (2 if averaged else 1)
    tensors += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    return sum(tensor.nbytes for tensor in tensors)
