"""What a target takes, read from its source: importing torch to ask it would take seconds."""

import ast
import importlib.util
import inspect
import os
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from vitlab.config.suggest import nearest
from vitlab.errors import UserError

Definition = ast.ClassDef | ast.FunctionDef


@dataclass(frozen=True)
class Module:
    """A module's dotted name and the file that holds its source."""

    name: str
    file: Path

    @property
    def is_package(self) -> bool:
        return self.file.name == "__init__.py"

    @property
    def package(self) -> str:
        return self.name if self.is_package else self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Parameter:
    """Whether a parameter must be given, and its annotation, with the module to look the annotation's names up in.

    Where the default is None, None is right whatever the annotation says.
    """

    required: bool
    none_by_default: bool = False
    annotation: ast.expr | None = None
    module: Module | None = None


@dataclass(frozen=True)
class Signature:
    """The parameters that can be given by name; an open signature takes any others too (`**kwargs`)."""

    parameters: dict[str, Parameter] = field(default_factory=dict)
    is_open: bool = False


def read_signature(target: str, where: str) -> Signature:
    """The signature of a class or function by its dotted name.

    It is read from the source where that says it, else the target is imported and asked.

    Raises:
        UserError: there is no such target.
    """
    found = _find(target)
    if found is not None:
        signature = _signature(*found)
        if signature is not None:
            return signature
    parent, _, name = target.rpartition(".")
    known = _names(parent)
    if known and name not in known:
        raise UserError(f"{where}._target_={target}: {parent} has no {name}{nearest(name, known)}")
    return _imported(target, where)


def look_up(module: Module, name: str) -> tuple[Module, ast.stmt] | None:
    """What a name stands for at a module's top level: a class, a function or an assignment, imports followed."""
    return _look_up(module, name, frozenset())


def _names(module_name: str) -> set[str]:
    """All names of a module; none where its source does not tell them all."""
    module = _module(module_name)
    names: set[str] = set()
    for statement in _statements(module) if module else []:
        match statement:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {alias.asname or alias.name.split(".")[0] for alias in aliases}
            case ast.Assign(targets=targets):
                names |= {target.id for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case ast.For() | ast.With() | ast.Expr(value=ast.Call()):  # may make names
                return set()
    return set() if names & {"*", "__getattr__"} else names


def _imported(target: str, where: str) -> Signature:
    try:
        parameters = inspect.signature(pkgutil.resolve_name(target)).parameters
    except ValueError:  # a class of Python's own, written in C
        return Signature(is_open=True)
    except Exception as error:  # importing runs the user's module: anything may come out of it
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{where}._target_={target} can't be imported ({reason})") from error
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return Signature(
        {name: Parameter(p.default is p.empty) for name, p in parameters.items() if p.kind in by_name},
        any(p.kind is p.VAR_KEYWORD for p in parameters.values()),
    )


def _find(target: str) -> tuple[Module, Definition] | None:
    """The class or function of a dotted name; None where the source does not tell."""
    top, *parts = target.split(".")
    module = _top_module(top)
    while module is not None and parts:
        name = parts.pop(0)
        below = _submodule(module, name) if parts else None
        if below is not None:
            module = below
            continue
        found = look_up(module, name)
        if found is None or parts or not isinstance(found[1], Definition):
            return None
        return found[0], found[1]
    return None


@cache
def _top_module(name: str) -> Module | None:
    try:
        spec = importlib.util.find_spec(name)  # of a top-level name: nothing is imported
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Module(name, Path(spec.origin))


@cache
def _submodule(module: Module, name: str) -> Module | None:
    if not module.is_package:
        return None
    folder = module.file.parent
    names = _names_in(folder)  # not `exists`: on some systems that finds "trainer" where "Trainer" is asked for
    if f"{name}.py" in names:
        return Module(f"{module.name}.{name}", folder / f"{name}.py")
    if name in names and (folder / name / "__init__.py").is_file():
        return Module(f"{module.name}.{name}", folder / name / "__init__.py")
    return None


@cache
def _names_in(folder: Path) -> frozenset[str]:
    return frozenset(os.listdir(folder))  # noqa: PTH208


def _module(name: str) -> Module | None:
    top, *parts = name.split(".")
    module = _top_module(top)
    for part in parts:
        module = module and _submodule(module, part)
    return module


@cache
def _statements(module: Module) -> list[ast.stmt]:
    """The top level of a module, with what stands in `if` and `try` there."""
    try:
        return list(_flat(ast.parse(module.file.read_bytes()).body))
    except (OSError, SyntaxError, ValueError):
        return []


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        if isinstance(statement, ast.If | ast.Try):
            yield from _flat(statement.body)
            for handler in getattr(statement, "handlers", []):
                yield from _flat(handler.body)
            yield from _flat(statement.orelse)
        else:
            yield statement


def _look_up(module: Module, name: str, seen: frozenset[tuple[str, str]]) -> tuple[Module, ast.stmt] | None:
    if (module.name, name) in seen:
        return None
    seen |= {(module.name, name)}
    stars = []
    for statement in reversed(_statements(module)):
        match statement:
            case ast.ClassDef() | ast.FunctionDef() if statement.name == name:
                return module, statement
            case ast.Assign(targets=[ast.Name(id=own)], value=value) if own == name:
                if isinstance(value, ast.Name):
                    return _look_up(module, value.id, seen) or (module, statement)
                return module, statement
            case ast.AnnAssign(target=ast.Name(id=own)) if own == name:
                return module, statement
            case ast.ImportFrom(names=names):
                for alias in names:
                    if alias.name == "*":
                        stars.append(statement)
                    elif (alias.asname or alias.name) == name:
                        source = _imported_from(module, statement)
                        return _look_up(source, alias.name, seen) if source else None
    for star in stars:
        source = _imported_from(module, star)
        found = _look_up(source, name, seen) if source else None
        if found:
            return found
    return None


def _imported_from(module: Module, statement: ast.ImportFrom) -> Module | None:
    if not statement.level:
        return _module(statement.module or "")
    package = module.package.split(".")
    package = package[: len(package) - statement.level + 1]
    return _module(".".join([*package, *([statement.module] if statement.module else [])]))


def _signature(module: Module, definition: Definition) -> Signature | None:
    if isinstance(definition, ast.FunctionDef):
        return _parameters(module, definition, skip=0)
    own = {s.name: s for s in definition.body if isinstance(s, ast.FunctionDef)}
    if "__new__" in own or definition.keywords:  # a metaclass or a constructor of its own may take anything
        return None
    if any("dataclass" in ast.unparse(decorator) for decorator in definition.decorator_list):
        return _fields(module, definition)
    if "__init__" not in own:
        return _base_signature(module, definition)
    init = own["__init__"]
    signature = _parameters(module, init, skip=1)
    passed_on = _passed_to_super(init)
    if signature.is_open and passed_on is not None:
        base = _base_signature(module, definition)
        if base is None:
            return signature
        inherited = {name: p for name, p in base.parameters.items() if name not in passed_on}
        return Signature({**inherited, **signature.parameters}, base.is_open)
    return signature


def _parameters(module: Module, function: ast.FunctionDef, skip: int) -> Signature:
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [*zip(positional, defaults, strict=True)][skip:]
    pairs = [pair for pair in pairs if pair[0] not in arguments.posonlyargs]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    parameters = {a.arg: Parameter(default is None, _is_none(default), a.annotation, module) for a, default in pairs}
    return Signature(parameters, arguments.kwarg is not None)


def _is_none(default: ast.expr | None) -> bool:
    return isinstance(default, ast.Constant) and default.value is None


def _fields(module: Module, definition: ast.ClassDef) -> Signature | None:
    """Of a dataclass without bases."""
    if definition.bases:
        return None
    return Signature(
        {
            s.target.id: Parameter(s.value is None, _is_none(s.value), s.annotation, module)
            for s in definition.body
            if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)
        }
    )


def _base_signature(module: Module, definition: ast.ClassDef) -> Signature | None:
    """The first base's that the source tells."""
    for base in definition.bases:
        name = ast.unparse(base)
        if name == "object":
            return Signature()
        head, _, rest = name.partition(".")
        found = look_up(module, name) if not rest else _find(_full_name(module, head) + "." + rest)
        if found and isinstance(found[1], ast.ClassDef):
            return _signature(found[0], found[1])
        return None
    return Signature()


def _full_name(module: Module, head: str) -> str:
    """The dotted name of what `import` bound to a name: `nn` of `from torch import nn` is `torch.nn`."""
    for statement in _statements(module):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            for alias in statement.names:
                if (alias.asname or alias.name) == head:
                    prefix = f"{statement.module}." if isinstance(statement, ast.ImportFrom) else ""
                    return prefix + alias.name
    return head


def _passed_to_super(init: ast.FunctionDef) -> set[str] | None:
    """Names that `super().__init__(name=..., **kwargs)` gives itself; None where it does not pass the kwargs on."""
    keywords = init.args.kwarg
    for node in ast.walk(init):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__":
            given = {keyword.arg for keyword in node.keywords if keyword.arg}
            if keywords and any(k.arg is None and ast.unparse(k.value) == keywords.arg for k in node.keywords):
                return given
    return None
