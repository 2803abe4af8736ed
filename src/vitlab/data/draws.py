"""Random numbers that hang on what they are for, not on what was drawn before."""

from dataclasses import dataclass

import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_MIX_2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB


def _shift_right(x: Tensor, bits: int) -> Tensor:
    # torch's >> carries the sign bit in; masking it away makes the shift that of unsigned integers.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014, figure 16): a bijection of int64 that looks random."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


@dataclass(frozen=True)
class Draws:
    """The draws of a batch: each image's are a function of (seed, epoch, image index) and of what they are for.

    Attributes:
        seed: The run's seed.
        epoch: Counted from 0.
        index: int64 `[B]`, each image's place in the data set, on the device where the draws are wanted.
    """

    seed: int
    epoch: int
    index: Tensor

    def uniform(self, stream: int, count: int) -> Tensor:
        """Uniform float32 `[B, count]` in [0, 1); another `stream` gives independent numbers."""
        key = torch.tensor([self.seed, self.epoch, stream], dtype=torch.int64)
        state = torch.zeros((), dtype=torch.int64)
        for word in key:
            state = _mix((state ^ word) + _GOLDEN)
        per_image = _mix((self.index + state.item()) * _GOLDEN + state.item())
        columns = torch.arange(1, count + 1, device=self.index.device) * _GOLDEN
        bits = _mix(per_image.unsqueeze(1) + columns)
        return _shift_right(bits, 40).float() * 2.0**-24
