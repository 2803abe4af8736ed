"""What the run will cost."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from pytorch_lightning.callbacks import Timer
from torch import nn

from vitlab.callbacks import EMA
from vitlab.classifier import ImageClassifier
from vitlab.memory import peak_memory, reset_peak_memory
from vitlab.models.flops import forward_flops
from vitlab.preflight.check_result import CheckResult, failed, ok
from vitlab.preflight.context import CheckContext

TIMED_SECONDS = 0.5  # about what a timed step may take on a CPU
KEPT_FILES = 3  # best.ckpt, last.ckpt, and one of them while it is written anew


def work(subject: CheckContext, network: nn.Module) -> CheckResult:
    """Parameters, and multiply-adds of an image's forward pass.

    Args:
        subject: The run.
        network: In float32 and eval mode.
    """
    image = subject.plain_images(1)
    parameters = sum(p.numel() for p in network.parameters())
    macs = forward_flops(network, image) / 2
    return ok("work", f"{parameters / 1e6:,.1f} M parameters, {macs / 1e9:,.2f} G multiply-adds an image forward")


def time_and_memory(
    subject: CheckContext, twin: ImageClassifier, optimizer: torch.optim.Optimizer, seconds_per_image: float
) -> Iterator[CheckResult]:
    """Images a second of whole training steps, what that makes of the run, and the memory they take.

    Args:
        subject: The run.
        twin: Its weights are trained away.
        optimizer: Of the twin.
        seconds_per_image: A guess, from smaller steps: how many images of the batch a CPU can be asked for.
    """
    device, trainer = subject.device, subject.trainer
    share = len(subject.batch.labels) // max(trainer.world_size, 1)
    count = share if device.type == "cuda" else min(share, max(8, int(TIMED_SECONDS / seconds_per_image)))
    images, labels = subject.batch.images[:count], subject.batch.labels[:count]

    def steps(number: int) -> float:
        started = time.perf_counter()
        for _ in range(number):
            subject.gradients(twin, images, labels)
            subject.clip(twin)
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    reset_peak_memory(device)
    steps(1)  # the first of a size is slower
    number = 5 if device.type == "cuda" else 1
    seconds = steps(number) / number
    speed = count * trainer.world_size / seconds
    yield ok("time", _duration(subject, speed))
    memory = peak_memory(device)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory / 2**30
        yield ok("memory", f"{memory:.1f} of {total:.0f} GiB of the GPU, this check's copies included")
    elif memory is not None:
        yield ok("memory", f"{memory:.1f} GiB so far, at the most")


def _duration(subject: CheckContext, speed: float) -> str:
    trainer, splits = subject.trainer, subject.data.splits
    batches = _limited(len(splits["train"]) // subject.data.batch_size, trainer.limit_train_batches)
    validated = _limited(len(splits["val"]), trainer.limit_val_batches, subject.data.eval_batch_size)
    lengths = []
    if trainer.max_epochs and trainer.max_epochs > 0:
        lengths.append(trainer.max_epochs * batches)
    if subject.classifier.max_steps > 0:
        lengths.append(subject.classifier.max_steps * trainer.accumulate_grad_batches)
    compiled = getattr(subject.classifier.network, "_compiled_call_impl", None) is not None
    figure = f"{speed:,.0f} images a second in training steps{', before torch.compile' if compiled else ''}"
    # A forward pass is about a third of a training step.
    epoch = (batches * subject.data.batch_size + validated / 3) / speed
    timers = [callback.time_remaining() for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    left = min((t for t in timers if t is not None), default=None)
    if not lengths:
        return (
            figure
            if left is None
            else f"{figure}: about {left / epoch:.2g} epochs in {_words(left)} of trainer.max_time"
        )
    total = min(lengths)
    seconds = epoch * total / max(batches, 1)
    if left is not None and left < seconds:
        return (
            f"{figure}: trainer.max_time ends the run after {_words(left)}, about {left / seconds:.0%} of its batches"
        )
    return f"{figure}: about {_words(seconds)} for {total:,} batches of {subject.data.batch_size}, validation included"


def _limited(count: int, limit: int | float | None, size: int = 1) -> int:
    """What a limit of the trainer's leaves: a number of batches of `size`, or a fraction."""
    if limit is None:
        return count
    return min(count, limit * size) if isinstance(limit, int) else int(count * limit)


def disk(subject: CheckContext, twin: ImageClassifier, optimizer: torch.optim.Optimizer, folder: Path) -> CheckResult:
    """What the checkpoints take of what is free.

    Args:
        subject: The run.
        twin: A copy.
        optimizer: Has taken a step: its state is there.
        folder: Where the checkpoints go.
    """
    averaged = any(isinstance(callback, EMA) for callback in subject.trainer.callbacks)  # type: ignore[attr-defined]
    tensors = [*twin.network.state_dict().values()] * (2 if averaged else 1)
    tensors += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    figure = f"checkpoints of {size / 1e6:,.0f} MB, up to {KEPT_FILES} at a time; {free / 1e9:,.1f} GB free"
    if KEPT_FILES * size > free:
        return failed("disk", figure, "the run would lose its model: make room, or set hydra.run.dir to another disk")
    return ok("disk", figure)


def _words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
