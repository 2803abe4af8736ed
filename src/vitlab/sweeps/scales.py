"""Axes for whatever a setting's values are: numbers, also over decades, words, switches, lists."""

from collections.abc import Sequence
from math import log10
from typing import Any

from matplotlib.ticker import LogLocator, MaxNLocator

from vitlab.sweeps.settings import show

FEW = 8  # different values that each get a tick


class Scale:
    """Places values between 0 and 1.

    Args:
        values: All that must find a place. Numbers lie by their size, or by its logarithm where they span a decade or
            more; anything else at equal distances.
        few: Up to so many different values each get a tick; more get round numbers.

    Attributes:
        log: Whether it is logarithmic.
        few: Whether each value has a tick.
        ticks: Their names and places.
    """

    def __init__(self, values: Sequence[Any], few: int = FEW) -> None:
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        distinct = list({show(value): value for value in values}.values())
        distinct = sorted(distinct) if numeric else sorted(distinct, key=show)
        self.numeric, self.few = numeric, len(distinct) <= few
        decades = numeric and distinct[-1] >= 10 * distinct[0]
        self.log = decades and distinct[0] > 0
        if self.few and decades and not self.log:  # a zero beside decades
            self.numeric = False
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
        locator = LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)) if self.log else MaxNLocator(4)
        return [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]
