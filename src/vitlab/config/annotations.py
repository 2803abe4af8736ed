"""Whether a value of the config fits a parameter's annotation, read from its source."""

import ast
from typing import Any

from vitlab.config.signatures import Module, Parameter, look_up
from vitlab.config.types import ANYTHING, LIST, MAPPING, NULL, NUMBER, OBJECT, SWITCH, TEXT, WHOLE, Kind

SIMPLE = {
    **{"int": WHOLE, "float": NUMBER, "str": TEXT, "bool": SWITCH, "None": NULL},
    **{"Path": TEXT, "PathLike": TEXT, "timedelta": OBJECT, "Tensor": OBJECT},
}
LISTS = {"list", "List", "Sequence", "Iterable", "Collection", "tuple", "Tuple", "set", "Set"}
ANY_NAMES = {"Any", "object", "Callable"}
PLAIN_BASES = {
    "Enum",
    "enum.Enum",
    "StrEnum",
    "str",
    "TypedDict",
    "NamedTuple",
    "Protocol",
}  # YAML can hold their values
MAPPINGS = {"dict", "Dict", "Mapping", "MutableMapping"}


def type_mismatch(value: Any, parameter: Parameter) -> Kind | None:
    """What the parameter expects where the value is something else; None where it fits or nothing is known.

    Args:
        value: Plain data: numbers, text, null, lists, dicts.
        parameter: With the annotation.
    """
    if parameter.annotation is None or (value is None and parameter.none_by_default):
        return None
    kind = _kind(parameter.annotation, parameter.module)
    return None if kind.fits(value) else kind


def _kind(node: ast.expr, module: Module | None) -> Kind:
    match node:
        case ast.Constant(value=None):
            return NULL
        case ast.Constant(value=str() as text):
            try:
                return _kind(ast.parse(text, mode="eval").body, module)
            except SyntaxError:
                return ANYTHING
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _either([_kind(left, module), _kind(right, module)])
        case ast.Subscript(value=head, slice=inner):
            return _generic(ast.unparse(head).rpartition(".")[2], inner, module)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return _named(name, node, module)
    return ANYTHING


def _generic(head: str, inner: ast.expr, module: Module | None) -> Kind:
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if head == "Optional":
        return _either([_kind(inner, module), NULL])
    if head == "Union":
        return _either([_kind(part, module) for part in parts])
    if head == "Literal":
        choices = [part.value for part in parts if isinstance(part, ast.Constant)]
        return Kind(", ".join(map(str, choices)), lambda value: value in choices, tuple(map(str, choices)))
    if head in LISTS:
        element = _either([_kind(part, module) for part in parts if not _is_ellipsis(part)])
        words = f"a list, each {element.words}" if element.words else "a list"
        return Kind(words, lambda value: isinstance(value, list) and all(map(element.fits, value)))
    if head in MAPPINGS:
        return MAPPING
    return ANYTHING


def _named(name: str, node: ast.expr, module: Module | None) -> Kind:
    if name in SIMPLE:
        return SIMPLE[name]
    if name in LISTS:
        return LIST
    if name in MAPPINGS:
        return MAPPING
    if module is None or name in ANY_NAMES or not isinstance(node, ast.Name):
        return ANYTHING
    match look_up(module, name):
        case (_, ast.ClassDef(bases=bases)):
            return ANYTHING if {ast.unparse(base) for base in bases} & PLAIN_BASES else OBJECT
        case (owner, ast.Assign(value=value)):  # a name for another annotation
            return _kind(value, owner)
        case (owner, ast.AnnAssign(annotation=annotation, value=ast.expr() as value)):
            return _kind(value, owner) if ast.unparse(annotation).endswith("TypeAlias") else ANYTHING
    return ANYTHING


def _either(kinds: list[Kind]) -> Kind:
    if any(kind is ANYTHING for kind in kinds):
        return ANYTHING
    words = list(dict.fromkeys(word for kind in kinds for word in kind.words.split(" or ") if word))
    if "a number" in words and "a whole number" in words:
        words.remove("a whole number")
    return Kind(" or ".join(words), lambda value: any(kind.fits(value) for kind in kinds))


def _is_ellipsis(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is Ellipsis
