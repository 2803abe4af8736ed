"""Counter-based (stateless) random numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import TypeVar

import torch
from torch import Tensor

Word = TypeVar("Word", int, Tensor)  # 64 bits

GOLDEN, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@dataclass(frozen=True)
class CounterRNG:
    """Random numbers for the images of a batch: functions of only seed, epoch, image, repetition and operation."""

    seed: int
    epoch: int | Tensor  # from 0
    indices: Tensor  # int64 [B], each image's index in its split, on the device that the numbers are for
    repetitions: Tensor | None = None  # int64 [B], how often the image has been used in this epoch; None means never
    streams: Tensor | None = None  # int64 [2, operations]: of this epoch and of the first; see `on_device`

    def on_device(self, operations: int) -> "CounterRNG":
        """The same numbers for op_index 0 to `operations` - 1, with seed and epoch in tensors.

        torch.compile would otherwise compile a graph for each epoch, and can't hash integers of 64 bits.
        """
        streams, epoch = _streams(self.seed, int(self.epoch), operations, self.indices.device)
        return replace(self, seed=0, epoch=epoch, streams=streams)

    def of_first_epoch(self) -> "CounterRNG":
        """The numbers of the first use of each image."""
        streams = None if self.streams is None else self.streams[1:]
        return replace(self, epoch=0, repetitions=None, streams=streams)

    def __getitem__(self, rows: Tensor) -> "CounterRNG":
        """The generator for some images of the batch, int64 `[M]`."""
        repetitions = None if self.repetitions is None else self.repetitions[rows]
        return replace(self, indices=self.indices[rows], repetitions=repetitions)

    def uniform(self, op_index: int, count: int) -> Tensor:
        """Uniform float32 `[B, count]` in [0, 1), multiples of 2**-24.

        Each `op_index` gives independent numbers. A larger `count` gives the same numbers and more.
        """
        device = self.indices.device
        if device.type in ("cpu", "cuda") or _counts_as_the_cpu(device):
            return self._uniform(op_index, count)
        repetitions = None if self.repetitions is None else self.repetitions.cpu()
        there = CounterRNG(self.seed, int(self.epoch), self.indices.cpu(), repetitions)
        return there._uniform(op_index, count).to(device)

    def _uniform(self, op_index: int, count: int) -> Tensor:
        golden = _signed(GOLDEN)
        if self.streams is None:
            state: int | Tensor = _signed(_mix_words(self.seed, int(self.epoch), op_index))
        else:
            state = self.streams[0, op_index]
        # No data set has 2**40 images.
        image = self.indices if self.repetitions is None else self.indices + (self.repetitions << 40)
        per_image = _mix((image + state) * golden + state)
        columns = torch.arange(1, count + 1, device=self.indices.device) * golden
        return _shift_right(_mix(per_image.unsqueeze(1) + columns), 40).float() * 2.0**-24


@cache
def _counts_as_the_cpu(device: torch.device) -> bool:
    """Whether a device has 64-bit integers that overflow as a CPU's do: not all of Apple's GPUs and drivers have."""
    indices = torch.arange(64) * 1_000_003
    expected = CounterRNG(1, 2, indices)._uniform(3, 4)
    try:
        return torch.equal(CounterRNG(1, 2, indices.to(device))._uniform(3, 4).cpu(), expected)
    except (RuntimeError, TypeError):  # an operation is not there; NotImplementedError is a RuntimeError
        return False


@lru_cache(maxsize=4)  # a copy to a GPU waits for it: once per epoch
def _streams(seed: int, epoch: int, operations: int, device: torch.device) -> tuple[Tensor, Tensor]:
    words = [[_signed(_mix_words(seed, e, operation)) for operation in range(operations)] for e in (epoch, 0)]
    return torch.tensor(words, device=device), torch.tensor(epoch, device=device)


@contextmanager
def fork_batch_rng(seed: int, epoch: int, number: int) -> Iterator[None]:
    """Let torch's CPU generator depend only on seed, epoch and the batch's number in it, within the block."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the GPUs, whose state is not restored.
        torch.default_generator.manual_seed(_mix_words(seed, epoch, number))
        yield


def _signed(word: int) -> int:
    """An unsigned 64-bit integer as torch's int64 holds it."""
    return word - (1 << 64) if word >> 63 else word


def _shift_right(x: Word, bits: int) -> Word:
    # torch's >> copies the sign bit; the mask makes it an unsigned shift.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Word) -> Word:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014, figure 16), a bijection of 64 bits that looks random."""
    x = (x ^ _shift_right(x, 30)) * _signed(MIX_1)
    x = (x ^ _shift_right(x, 27)) * _signed(MIX_2)
    return x ^ _shift_right(x, 31)


def _mix_words(*words: int) -> int:
    """Hash a sequence of integers to one unsigned integer, on the host so that nothing waits for a device."""
    state = 0
    for word in words:
        state = _mix((state ^ word) + GOLDEN) & ((1 << 64) - 1)
    return state
