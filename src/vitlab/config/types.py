"""What a value of the config may be."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """A test of a value, the words for it, and the names to choose from where there are some."""

    words: str
    fits: Callable[[Any], bool]
    names: tuple[str, ...] = ()

    def __or__(self, other: "Kind") -> "Kind":
        return Kind(
            f"{self.words}, or {other.words}",
            lambda value: self.fits(value) or other.fits(value),
            self.names + other.names,
        )


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """A finite one: an infinite learning rate or number of images makes no sense anywhere."""
    return isinstance(value, int | float) and not isinstance(value, bool) and (is_whole(value) or math.isfinite(value))


ANYTHING = Kind("", lambda value: True)
NULL = Kind("null", lambda value: value is None)
WHOLE = Kind("a whole number", is_whole)
NUMBER = Kind("a number", is_number)
TEXT = Kind("text", lambda value: isinstance(value, str))
SWITCH = Kind("true or false", lambda value: isinstance(value, bool))
OBJECT = Kind("an object with a _target_", lambda value: isinstance(value, dict) and "_target_" in value)
LIST = Kind("a list", lambda value: isinstance(value, list))
MAPPING = Kind("a mapping", lambda value: isinstance(value, dict))


def whole(low: int, high: int | None = None) -> Kind:
    words = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
    return Kind(words, lambda v: is_whole(v) and v >= low and (high is None or v <= high))


def number(low: float, high: float = float("inf"), *, above: bool = False, below: bool = False) -> Kind:
    """From `low` to `high`, without the ends that `above` and `below` leave out."""
    words = f"a number {'above' if above else 'of at least'} {low:g}"
    if high != float("inf"):
        words += f" and {'below' if below else 'at most'} {high:g}"

    def fits(value: Any) -> bool:
        if not is_number(value):
            return False
        over = value > low if above else value >= low
        return over and (value < high if below else value <= high)

    return Kind(words, fits)


def choice(*names: str) -> Kind:
    return Kind(f"one of {', '.join(names)}", lambda value: value in names, names)


def each(count: int, kind: Kind) -> Kind:
    return Kind(
        f"a list of {count}, each {kind.words}",
        lambda value: isinstance(value, list) and len(value) == count and all(map(kind.fits, value)),
    )
