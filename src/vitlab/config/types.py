"""Kinds of values: tests with a description, made by hand or from an annotation."""

import ast
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import reduce
from operator import le, lt, or_
from typing import Any

from vitlab.config.signatures import Module, find_name


@dataclass(frozen=True)
class Kind:
    """A set of allowed values; `a | b` allows the values of both."""

    words: str  # in messages: "must be {words}"
    fits: Callable[[Any], bool]
    names: tuple[str, ...] = ()  # the words to choose from, if any, for "Did you mean"

    def __or__(self, other: "Kind") -> "Kind":
        if ANYTHING in (self, other):
            return ANYTHING
        words = dict.fromkeys([*self.words.split(", or "), *other.words.split(", or ")])
        return Kind(", or ".join(words), lambda v: self.fits(v) or other.fits(v), self.names + other.names)


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether the value is a finite number; true and false are none."""
    return is_whole(value) or (isinstance(value, float) and math.isfinite(value))


ANYTHING = Kind("anything", lambda value: True)
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
    return Kind(words, lambda v: is_whole(v) and low <= v and (high is None or v <= high))


def number(low: float, high: float = math.inf, *, above: bool = False, below: bool = False) -> Kind:
    """Numbers from `low` to `high`; `above` and `below` exclude the ends."""
    words = f"a number {'above' if above else 'of at least'} {low:g}"
    if high != math.inf:
        words += f" and {'below' if below else 'at most'} {high:g}"
    at_low, at_high = lt if above else le, lt if below else le
    return Kind(words, lambda v: is_number(v) and at_low(low, v) and at_high(v, high))


def choice(*names: str) -> Kind:
    words = f"one of {', '.join(names)}" if len(names) > 1 else names[0]
    return Kind(words, lambda value: value in names, names)


def each(kind: Kind, count: int | None = None) -> Kind:
    """Lists of any number of values of a kind, or of `count`."""
    words = f"a list{'' if count is None else f' of {count}'}, each {kind.words}"
    return Kind(words, lambda v: isinstance(v, list) and count in (None, len(v)) and all(map(kind.fits, v)))


BY_NAME = {
    **{"int": WHOLE, "float": NUMBER, "str": TEXT, "bool": SWITCH, "None": NULL, "Path": TEXT, "PathLike": TEXT},
    **{"timedelta": OBJECT, "Tensor": OBJECT},
    **dict.fromkeys(("list", "List", "Sequence", "Iterable", "Collection", "tuple", "Tuple", "set", "Set"), LIST),
    **dict.fromkeys(("dict", "Dict", "Mapping", "MutableMapping"), MAPPING),
    **dict.fromkeys(("Any", "object", "Callable"), ANYTHING),
}
# YAML can hold values of classes with these bases; any other class is an object with a _target_.
PLAIN_BASES = {"Enum", "enum.Enum", "StrEnum", "str", "TypedDict", "NamedTuple", "Protocol"}


def kind_of(annotation: ast.expr | None, module: Module | None) -> Kind:
    """The kind that an annotation, whose names are those of a module, allows; ANYTHING if the source does not tell."""
    match annotation:
        case ast.Constant(value=None):
            return NULL
        case ast.Constant(value=str() as text):
            with suppress(SyntaxError):
                return kind_of(ast.parse(text, mode="eval").body, module)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return kind_of(left, module) | kind_of(right, module)
        case ast.Subscript(value=head, slice=inner):
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return _kind_of_generic(ast.unparse(head).rpartition(".")[2], parts, module)
        case ast.Name(id=name) if name not in BY_NAME and module is not None:
            return _kind_of_definition(find_name(module, name))
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return BY_NAME.get(name, ANYTHING)
    return ANYTHING


def _kind_of_generic(head: str, parts: list[ast.expr], module: Module | None) -> Kind:
    if head == "Literal":
        values = [part.value for part in parts if isinstance(part, ast.Constant)]
        return replace(choice(*map(str, values)), fits=lambda v: v in values)
    kinds = [kind_of(part, module) for part in parts if ast.unparse(part) != "..."]
    if head in ("Optional", "Union"):
        return reduce(or_, [*kinds, NULL] if head == "Optional" else kinds)
    if BY_NAME.get(head) is LIST and ANYTHING not in kinds:
        return each(reduce(or_, kinds))
    return BY_NAME.get(head, ANYTHING)


def _kind_of_definition(found: tuple[Module, ast.stmt] | None) -> Kind:
    match found:
        case (_, ast.ClassDef(bases=bases)):
            return ANYTHING if {ast.unparse(base) for base in bases} & PLAIN_BASES else OBJECT
        case (owner, ast.Assign(value=value)):  # a name for another annotation
            return kind_of(value, owner)
        case (owner, ast.AnnAssign(annotation=ast.expr() as hint, value=value)) if "TypeAlias" in ast.unparse(hint):
            return kind_of(value, owner)
    return ANYTHING
