"""Axes for whatever a setting's values are: numbers, also over decades, words, switches, lists."""

from collections.abc import Sequence
from math import log10
from statistics import median
from typing import Any

from matplotlib.ticker import LogLocator, MaxNLocator

from vitlab.leaderboard.varied_settings import is_number, show

FEW = 8  # different values that each get a tick


class Scale:
    """Places values between 0 and 1.

    Args:
        values: All that must find a place. Numbers lie by their size, or by its logarithm where they span a decade or
            more and fill that more evenly; anything else at equal distances.
        few: Up to so many different values each get a tick; more get round numbers.

    Attributes:
        log: Whether it is logarithmic.
        few: Whether each value has a tick.
        ticks: Their names and places.
    """

    def __init__(self, values: Sequence[Any], few: int = FEW) -> None:
        distinct = sorted({show(value): value for value in values}.values(), key=_numbers_first)
        self.few = len(distinct) <= few
        positive = [value for value in distinct if is_number(value) and value > 0]
        decades = bool(positive) and _are_spread_over_decades(positive)
        self.log = decades and len(positive) == len(distinct)
        zero_beside_decades = decades and not self.log and self.few
        self.numeric = all(map(is_number, distinct)) and not zero_beside_decades
        self._names = [show(value) for value in distinct]
        self._low, self._high = (self._size(distinct[0]), self._size(distinct[-1])) if self.numeric else (0.0, 0.0)
        self.ticks = [(show(value), self(value)) for value in (distinct if self.few else self._round(distinct))]

    def __call__(self, value: Any) -> float:
        if not self.numeric:
            return (self._names.index(show(value)) + 0.5) / len(self._names)
        if self._low == self._high:
            return 0.5
        return (self._size(value) - self._low) / (self._high - self._low)

    def _size(self, value: float) -> float:
        return log10(value) if self.log else float(value)

    def _round(self, distinct: Sequence[float]) -> list[float]:
        """Round numbers within the values' range."""
        if not self.numeric:
            return list(distinct)
        low, high = distinct[0], distinct[-1]
        whole = all(isinstance(value, int) for value in distinct)
        locator = LogLocator(subs=(1, 3) if high < 1000 * low else (1,)) if self.log else MaxNLocator(4, integer=whole)
        return [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high] or [low]


def _numbers_first(value: Any) -> tuple[bool, float, str]:
    return (False, float(value), "") if is_number(value) else (True, 0.0, show(value))


def _are_spread_over_decades(distinct: Sequence[float]) -> bool:
    low, middle, high = distinct[0], median(distinct), distinct[-1]
    if high < 10 * low or len(distinct) < 3:
        return high >= 10 * low
    even = (middle - low) / (high - low)
    return abs(log10(middle / low) / log10(high / low) - 0.5) <= abs(even - 0.5)
