"""Estimates of what the run will cost: compute, time, memory and disk."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from pytorch_lightning.callbacks import Timer
from torch import nn

from vitlab.callbacks import EMA
from vitlab.classifier import ImageClassifier
from vitlab.compat import is_compiled, peak_memory, reset_peak_memory
from vitlab.models.execution import forward_flops
from vitlab.preflight.check_result import CheckResult, failed, ok
from vitlab.preflight.context import CheckContext

TIMED_SECONDS = 0.5  # about the longest step to time on a CPU
KEPT_FILES = 3  # best.ckpt, last.ckpt, and one of them while it is rewritten


def compute(context: CheckContext, network: nn.Module) -> CheckResult:
    """Parameters, and multiply-adds of one image's forward pass, of a float32 network in eval mode."""
    parameters = sum(p.numel() for p in network.parameters())
    macs = forward_flops(network, context.plain_images(1)) / 2
    return ok(f"{parameters / 1e6:,.1f} M parameters, {macs / 1e9:,.2f} G multiply-adds per image (forward)")


def time_and_memory(
    context: CheckContext, classifier: ImageClassifier, optimizer: torch.optim.Optimizer, seconds_per_image: float
) -> Iterator[CheckResult]:
    """Time training steps of a copy, and estimate the duration and memory of the run.

    `seconds_per_image` is a guess from smaller steps; it decides how many images a CPU gets.
    """
    device, trainer = context.device, context.trainer
    share = len(context.batch.labels) // max(trainer.world_size, 1)
    count = share if device.type == "cuda" else min(share, max(8, int(TIMED_SECONDS / seconds_per_image)))
    images, labels = context.batch.images[:count], context.batch.labels[:count]

    def time_steps(number: int) -> float:
        started = time.perf_counter()
        for _ in range(number):
            context.gradients(classifier, images, labels)
            context.clip(classifier)
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - started) / number

    reset_peak_memory(device)
    time_steps(1)  # the first step of a size is slower
    seconds = time_steps(5 if device.type == "cuda" else 1)
    yield ok(_duration(context, count * trainer.world_size / seconds))
    memory = peak_memory(device)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory / 2**30
        yield ok(f"{memory:.1f} of {total:.0f} GiB on the GPU, including this check's copies", "memory")
    elif memory is not None:
        yield ok(f"{memory:.1f} GiB at most so far", "memory")


def _duration(context: CheckContext, speed: float) -> str:
    """The speed in images per second, and the time that the run will take."""
    trainer, splits = context.trainer, context.data.splits
    batches = _limited(len(splits["train"]) // context.data.batch_size, trainer.limit_train_batches)
    validated = _limited(len(splits["val"]), trainer.limit_val_batches, context.data.eval_batch_size)
    totals = []
    if trainer.max_epochs and trainer.max_epochs > 0:
        totals.append(trainer.max_epochs * batches)
    if context.classifier.max_steps > 0:
        totals.append(context.classifier.max_steps * trainer.accumulate_grad_batches)
    compiled = ", before torch.compile" if is_compiled(context.classifier.network) else ""
    figure = f"{speed:,.0f} training images per second{compiled}"
    # A forward pass is about a third of a training step.
    epoch = (batches * context.data.batch_size + validated / 3) / speed
    limits = [callback.time_remaining() for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    limit = min((seconds for seconds in limits if seconds is not None), default=None)
    if not totals:
        return figure if limit is None else f"{figure}: about {limit / epoch:.2g} epochs in {_format(limit)}"
    total = min(totals)
    seconds = epoch * total / max(batches, 1)
    if limit is not None and limit < seconds:
        return f"{figure}: trainer.max_time stops the run after {_format(limit)}, about {limit / seconds:.0%} of it"
    return f"{figure}: about {_format(seconds)} for {total:,} batches of {context.data.batch_size}, with validation"


def _limited(count: int, limit: int | float | None, size: int = 1) -> int:
    """`count` under one of the trainer's limits: a number of batches of `size`, or a fraction."""
    if limit is None:
        return count
    return min(count, limit * size) if isinstance(limit, int) else int(count * limit)


def disk(
    context: CheckContext, classifier: ImageClassifier, optimizer: torch.optim.Optimizer, folder: Path
) -> CheckResult:
    """The checkpoints fit into `folder`; the optimizer must have taken a step, so that its state exists."""
    averaged = any(isinstance(callback, EMA) for callback in context.trainer.callbacks)  # type: ignore[attr-defined]
    tensors = [*classifier.network.state_dict().values()] * (2 if averaged else 1)
    tensors += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    figure = f"checkpoints of {size / 1e6:,.0f} MB, up to {KEPT_FILES} at a time; {free / 1e9:,.1f} GB free"
    if KEPT_FILES * size > free:
        return failed(figure, "the checkpoints would not fit: free some space, or set hydra.run.dir to another disk")
    return ok(figure)


def _format(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
