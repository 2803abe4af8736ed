"""Counter-based (stateless) random numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_WORD = (1 << 64) - 1
_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@dataclass(frozen=True)
class CounterRNG:
    """Random numbers for the images of a batch, a function of seed, epoch, image index, repetition and operation.

    They depend on nothing that was drawn before, nor on the other images of the batch.

    Attributes:
        seed: The run's seed.
        epoch: Counted from 0.
        indices: int64 `[B]`, each image's index in its split, on the device that the numbers are for.
        repetitions: int64 `[B]`, how often the image has already been used in this epoch; None means never.
    """

    seed: int
    epoch: int
    indices: Tensor
    repetitions: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> "CounterRNG":
        """The generator for some images of the batch, int64 `[M]`."""
        repetitions = None if self.repetitions is None else self.repetitions[rows]
        return replace(self, indices=self.indices[rows], repetitions=repetitions)

    def uniform(self, op_index: int, count: int) -> Tensor:
        """Uniform float32 `[B, count]` in [0, 1), multiples of 2**-24.

        Each `op_index` gives independent numbers. A larger `count` gives the same numbers and more.
        """
        state = _mix_words(self.seed, self.epoch, op_index)
        # No data set has 2**40 images.
        image = self.indices if self.repetitions is None else self.indices + (self.repetitions << 40)
        per_image = _mix((image + _signed(state)) * _signed(_GOLDEN) + _signed(state))
        columns = torch.arange(1, count + 1, device=self.indices.device) * _signed(_GOLDEN)
        bits = _mix(per_image.unsqueeze(1) + columns)
        return _shift_right(bits, 40).float() * 2.0**-24


@contextmanager
def fork_batch_rng(seed: int, epoch: int, number: int) -> Iterator[None]:
    """Within the block, torch's CPU generator depends only on the seed, the epoch and the batch's number in it.

    Afterwards the generator is back in its earlier state.
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the GPUs, whose state is not restored.
        torch.default_generator.manual_seed(_mix_words(seed, epoch, number))
        yield


def _signed(word: int) -> int:
    """An unsigned 64-bit integer as torch's int64 holds it."""
    return word - (1 << 64) if word >> 63 else word


def _shift_right(x: Tensor, bits: int) -> Tensor:
    # torch's >> copies the sign bit; the mask makes it an unsigned shift.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014, figure 16), a bijection of int64 that looks random."""
    x = (x ^ _shift_right(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shift_right(x, 27)) * _signed(_MIX_2)
    return x ^ _shift_right(x, 31)


def _mix_words(*words: int) -> int:
    """Hash a sequence of integers to one unsigned integer, on the host so that nothing waits for a device."""
    state = 0
    for word in words:
        x = ((state ^ word) + _GOLDEN) & _WORD
        x = ((x ^ (x >> 30)) * _MIX_1) & _WORD
        x = ((x ^ (x >> 27)) * _MIX_2) & _WORD
        state = x ^ (x >> 31)
    return state
