"""What a benchmark is made of."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

# Called with a number of steps, does so many and says how many images that were.
Variant = Callable[[int], int]
Sections = Mapping[str, Mapping[str, Variant]]


def endless(batches: Any) -> Iterator[Any]:
    """One pass after another."""
    while True:
        yield from batches
