"""Estimates of what the run will cost: compute, time, memory and disk."""

import shutil
import time

import torch
from pytorch_lightning.callbacks import Timer

from vitlab.callbacks import EMA
from vitlab.compat import is_compiled, peak_memory, reset_peak_memory
from vitlab.models.execution import forward_flops, limited
from vitlab.preflight.context import CheckContext, CheckResult, failed, ok
from vitlab.runs.console import format_duration

TIMED_SECONDS = 0.5  # about the longest step to time on a CPU
KEPT_FILES = 3  # best.ckpt, last.ckpt, and one of them while it is rewritten


def compute(context: CheckContext) -> CheckResult:
    """Parameters, and multiply-adds of one image's forward pass."""
    parameters = sum(p.numel() for p in context.network.parameters())
    macs = forward_flops(context.network, context.plain_images(1)) / 2
    return ok(f"{parameters / 1e6:,.1f} M parameters, {macs / 1e9:,.2f} G multiply-adds per image (forward)")


def speed(context: CheckContext) -> CheckResult:
    """Images per second of training steps, and the duration of the run."""
    trial = context.recipe
    world_size, on_gpu = context.trainer.world_size, context.device.type == "cuda"
    share = len(context.batch.labels) // max(world_size, 1)
    count = share if on_gpu else min(share, max(8, int(TIMED_SECONDS / trial.seconds_per_image)))
    images, labels = context.batch.images[:count], context.batch.labels[:count]

    def time_steps(number: int) -> float:
        started = time.perf_counter()
        for _ in range(number):
            context.gradients(trial.classifier, images, labels)
            context.clip(trial.optimizer)
            trial.optimizer.step()
        if on_gpu:
            torch.cuda.synchronize(context.device)
        return (time.perf_counter() - started) / number

    reset_peak_memory(context.device)
    time_steps(1)  # the first step of a size is slower
    return ok(_duration(context, count * world_size / time_steps(5 if on_gpu else 1)))


def _duration(context: CheckContext, speed: float) -> str:
    """The speed in images per second, and the time that the run will take."""
    trainer, data = context.trainer, context.data
    batches = limited(len(data.splits["train"]) // data.batch_size, trainer.limit_train_batches)
    validated = limited(len(data.splits["val"]), trainer.limit_val_batches, data.eval_batch_size)
    # A forward pass is about a third of a training step.
    epoch = (batches * data.batch_size + validated / 3) / speed
    totals = []
    if trainer.max_epochs and trainer.max_epochs > 0:
        totals.append(trainer.max_epochs * batches)
    if context.classifier.max_steps > 0:
        totals.append(context.classifier.max_steps * trainer.accumulate_grad_batches)
    timers = [callback.time_remaining() for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    limit = min((seconds for seconds in timers if seconds is not None), default=None)
    compiled = ", before torch.compile" if any(map(is_compiled, context.classifier.modules())) else ""
    figure = f"{speed:,.0f} training images per second{compiled}"
    if not totals:
        return figure if limit is None else f"{figure}: about {limit / epoch:.2g} epochs in {format_duration(limit)}"
    total = min(totals)
    seconds = epoch * total / max(batches, 1)
    if limit is not None and limit < seconds:
        fraction = f"about {limit / seconds:.0%} of it"
        return f"{figure}: trainer.max_time stops the run after {format_duration(limit)}, {fraction}"
    return f"{figure}: about {format_duration(seconds)} for {total:,} batches of {data.batch_size}, with validation"


def memory(context: CheckContext) -> CheckResult | None:
    """Peak memory of the timed steps on a GPU, else of the process."""
    peak = peak_memory(context.device)
    if context.device.type == "cuda":
        total = torch.cuda.get_device_properties(context.device).total_memory / 2**30
        return ok(f"{peak:.1f} of {total:.0f} GiB on the GPU, including this check's copies")
    return None if peak is None else ok(f"{peak:.1f} GiB at most so far")


def disk(context: CheckContext) -> CheckResult:
    """The checkpoints fit onto the disk of the run."""
    trial = context.recipe
    averaged = any(isinstance(callback, EMA) for callback in context.trainer.callbacks)  # type: ignore[attr-defined]
    tensors = [*trial.classifier.network.state_dict().values()] * (2 if averaged else 1)
    tensors += [v for state in trial.optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    size = sum(tensor.nbytes for tensor in tensors)
    free = shutil.disk_usage(context.trainer.default_root_dir).free
    figure = f"checkpoints of {size / 1e6:,.0f} MB, up to {KEPT_FILES} at a time; {free / 1e9:,.1f} GB free"
    if KEPT_FILES * size > free:
        return failed(figure, "the checkpoints would not fit: free some space, or set hydra.run.dir to another disk")
    return ok(figure)
