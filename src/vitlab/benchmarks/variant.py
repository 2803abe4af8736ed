"""What a benchmark is made of."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

# Called with a number of steps, does so many and gives the figure that is compared, mostly images a second.
Variant = Callable[[int], float]
Sections = Mapping[str, Mapping[str, Variant]]


@dataclass(frozen=True)
class Work:
    """What a benchmark is made from.

    Attributes:
        config: The training config, composed.
        overrides: What it was composed with, as typed.
        command: The values of `conf/bench.yaml`.
    """

    config: DictConfig
    overrides: Sequence[str]
    command: DictConfig


def timed(loop: Callable[[int], int], *, warmup: int = 1) -> Variant:
    """Images a second of a loop, which is called with a number of steps and says how many images that were.

    `warmup` steps go before and are not timed: the first is slower, and what workers have made ahead is to be used up.
    """

    def run(steps: int) -> float:
        loop(warmup)
        started = time.perf_counter()
        images = loop(steps)
        return images / (time.perf_counter() - started)

    return run


def endless(batches: Any) -> Iterator[Any]:
    """One pass after another."""
    while True:
        yield from batches
