"""A variant that runs apart from the others."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from vitlab.benchmarks.variant import Variant

_variant: Variant  # of the process that was begun for it


class InItsOwnProcess:
    """A variant in a fresh process, in which nothing of ours has set up memory or threads.

    Args:
        make: Makes the variant there; a function of a module.
        *arguments: Of `make`.
    """

    def __init__(self, make: Callable[..., Variant], *arguments: Any) -> None:
        self._process = ProcessPoolExecutor(1, get_context("spawn"), _begin, (make, arguments))

    def __call__(self, steps: int) -> float:
        return self._process.submit(_measure, steps).result()


def _begin(make: Callable[..., Variant], arguments: tuple[Any, ...]) -> None:
    global _variant
    _variant = make(*arguments)


def _measure(steps: int) -> float:
    return _variant(steps)
