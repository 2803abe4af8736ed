"""Random numbers that hang on what they are for, not on what was drawn before."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_WORD = (1 << 64) - 1
_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(word: int) -> int:
    """An unsigned 64-bit integer as torch's int64 holds it."""
    return word - (1 << 64) if word >> 63 else word


def _shift_right(x: Tensor, bits: int) -> Tensor:
    # torch's >> carries the sign bit in; masking it away makes the shift that of unsigned integers.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014, figure 16): a bijection of int64 that looks random."""
    x = (x ^ _shift_right(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shift_right(x, 27)) * _signed(_MIX_2)
    return x ^ _shift_right(x, 31)


def _mix_word(x: int) -> int:
    """The same of one unsigned number, on the host: nothing has to wait for a device."""
    x = ((x ^ (x >> 30)) * _MIX_1) & _WORD
    x = ((x ^ (x >> 27)) * _MIX_2) & _WORD
    return x ^ (x >> 31)


def _mix_words(*words: int) -> int:
    """One unsigned number that hangs on all of these and their order."""
    state = 0
    for word in words:
        state = _mix_word(((state ^ word) + _GOLDEN) & _WORD)
    return state


@dataclass(frozen=True)
class CounterRNG:
    """The draws of a batch: each image's are a function of (seed, epoch, image index, repetition) and of what they are
    for.

    Attributes:
        seed: The run's seed.
        epoch: Counted from 0.
        index: int64 `[B]`, each image's place in the data set, on the device where the draws are wanted.
        repetition: int64 `[B]`, how often the image came before in its epoch; None: never.
    """

    seed: int
    epoch: int
    index: Tensor
    repetition: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> "CounterRNG":
        """Those of some images of the batch, by int64 `[M]`."""
        repetition = None if self.repetition is None else self.repetition[rows]
        return replace(self, index=self.index[rows], repetition=repetition)

    def uniform(self, stream: int, count: int) -> Tensor:
        """Uniform float32 `[B, count]` in [0, 1), multiples of 2**-24; another `stream` gives independent numbers, and
        a larger `count` the same ones and more."""
        state = _mix_words(self.seed, self.epoch, stream)
        # No data set has 2**40 images.
        image = self.index if self.repetition is None else self.index + (self.repetition << 40)
        per_image = _mix((image + _signed(state)) * _signed(_GOLDEN) + _signed(state))
        columns = torch.arange(1, count + 1, device=self.index.device) * _signed(_GOLDEN)
        bits = _mix(per_image.unsqueeze(1) + columns)
        return _shift_right(bits, 40).float() * 2.0**-24


@contextmanager
def draws_of_batch(seed: int, epoch: int, number: int) -> Iterator[None]:
    """Within, what torch draws on the CPU is a function of the seed and of a batch's epoch and number in it; what it
    draws afterwards is what it would have been."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also seed the GPUs, and those are not given back.
        torch.default_generator.manual_seed(_mix_words(seed, epoch, number))
        yield
