"""Read what a target takes from its source: importing torch to ask takes seconds."""

import ast
import importlib.util
import inspect
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

from vitlab.errors import UserError, first_line, nearest

Definition = ast.ClassDef | ast.FunctionDef


@dataclass(frozen=True)
class Module:
    """A module's dotted name and source file."""

    name: str
    file: Path

    @property
    def is_package(self) -> bool:
        return self.file.name == "__init__.py"


@dataclass(frozen=True)
class Parameter:
    """A parameter of a target."""

    required: bool
    none_by_default: bool = False  # then null is right whatever the annotation says
    annotation: ast.expr | None = None
    module: Module | None = None  # whose names the annotation uses


@dataclass(frozen=True)
class Signature:
    """The parameters that can be given by name; an open signature takes any others too (`**kwargs`)."""

    parameters: dict[str, Parameter] = field(default_factory=dict)
    is_open: bool = False


def read_signature(target: str, where: str, *, imports: bool = True) -> Signature:
    """Read a target's signature from its source; import the target only if the source does not tell.

    `target` is a dotted name, `where` its path in the config. Without `imports` a signature that the source does not
    tell is an open one. UserError if there is no such target.
    """
    found = find_definition(target)
    signature = signature_of(*found) if found else None
    if signature is not None or not imports:
        return signature or Signature(is_open=True)
    parent, _, name = target.rpartition(".")
    try:
        owner = pkgutil.resolve_name(parent)
        if not hasattr(owner, name):
            raise UserError(f"{where}._target_={target}: {parent} has no {name}{nearest(name, dir(owner))}")
        parameters = inspect.signature(getattr(owner, name)).parameters.values()
    except UserError:
        raise
    except ValueError:  # a class of Python's own, written in C
        return Signature(is_open=True)
    except Exception as error:  # importing runs the user's module: anything may come out of it
        raise UserError(f"{where}._target_={target} can't be imported ({first_line(error)})") from error
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    is_open = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return Signature({p.name: Parameter(p.default is p.empty) for p in by_name}, is_open)


def find_definition(target: str) -> tuple[Module, Definition] | None:
    """Find the class or function of a dotted name; None if the source does not tell."""
    parent, _, name = target.rpartition(".")
    module = _find_module(parent)
    found = find_name(module, name) if module else None
    return (found[0], found[1]) if found and isinstance(found[1], Definition) else None


def find_name(
    module: Module, name: str, seen: frozenset[tuple[str, str]] = frozenset()
) -> tuple[Module, ast.stmt] | None:
    """Find the class, function or assignment that a name at a module's top level stands for; follows imports."""
    if (module.name, name) in seen:
        return None
    seen |= {(module.name, name)}
    for statement in reversed(_statements(module)):
        match statement:
            case ast.ClassDef() | ast.FunctionDef() if statement.name == name:
                return module, statement
            case ast.Assign(targets=[ast.Name(id=own)], value=value) if own == name:
                alias = find_name(module, value.id, seen) if isinstance(value, ast.Name) else None
                return alias or (module, statement)
            case ast.AnnAssign(target=ast.Name(id=own)) if own == name:
                return module, statement
            case ast.ImportFrom(names=aliases):
                imported = next((alias.name for alias in aliases if name == (alias.asname or alias.name)), None)
                is_star = aliases[0].name == "*"
                source = _source_of(module, statement) if imported or is_star else None
                found = find_name(source, imported or name, seen) if source else None
                if found or imported:
                    return found
    return None


@cache
def _find_module(name: str) -> Module | None:
    """Find a module that has source, without importing it or its parents."""
    above = _find_module(name.rpartition(".")[0]) if "." in name else None
    try:
        if "." in name:
            spec = PathFinder.find_spec(name, [str(above.file.parent)]) if above and above.is_package else None
        else:
            spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return Module(name, Path(spec.origin)) if spec and spec.origin and spec.origin.endswith(".py") else None


def _source_of(module: Module, statement: ast.ImportFrom) -> Module | None:
    """The module that `from ... import` names."""
    parts = module.name.split(".")
    above = parts[: len(parts) - statement.level + module.is_package] if statement.level else []
    return _find_module(".".join([*above, *([statement.module] if statement.module else [])]))


@cache
def _statements(module: Module) -> list[ast.stmt]:
    """The top level of a module, including the bodies of `if` and `try`."""
    try:
        return list(_flat(ast.parse(module.file.read_bytes()).body))
    except (OSError, SyntaxError, ValueError):
        return []


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        if isinstance(statement, ast.If | ast.Try):
            handlers = getattr(statement, "handlers", [])
            yield from _flat([*statement.body, *(s for handler in handlers for s in handler.body), *statement.orelse])
        else:
            yield statement


def signature_of(module: Module, definition: Definition) -> Signature | None:
    """The signature of a function or a class; None if the source does not tell."""
    if isinstance(definition, ast.FunctionDef):
        return _parameters(module, definition, skip=0)
    methods = {s.name: s for s in definition.body if isinstance(s, ast.FunctionDef)}
    if "__new__" in methods or definition.keywords:  # a constructor or metaclass of its own may take anything
        return None
    if any("dataclass" in ast.unparse(decorator) for decorator in definition.decorator_list):
        fields = [s for s in definition.body if isinstance(s, ast.AnnAssign)]
        own = {ast.unparse(s.target): _parameter(s.value, s.annotation, module) for s in fields}
        return None if definition.bases else Signature(own)
    if "__init__" not in methods:
        return _base_signature(module, definition)
    signature = _parameters(module, methods["__init__"], skip=1)
    given = _given_to_super(methods["__init__"])
    base = None if given is None else _base_signature(module, definition)
    if given is None or base is None:
        return signature
    inherited = {name: p for name, p in base.parameters.items() if name not in given}
    return Signature({**inherited, **signature.parameters}, base.is_open)


def _parameters(module: Module, function: ast.FunctionDef, skip: int) -> Signature:
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [*zip(positional, defaults, strict=True)][max(skip, len(arguments.posonlyargs)) :]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    found = {argument.arg: _parameter(default, argument.annotation, module) for argument, default in pairs}
    return Signature(found, arguments.kwarg is not None)


def _parameter(default: ast.expr | None, annotation: ast.expr | None, module: Module) -> Parameter:
    is_none = isinstance(default, ast.Constant) and default.value is None
    return Parameter(default is None, is_none, annotation, module)


def _base_signature(module: Module, definition: ast.ClassDef) -> Signature | None:
    """The signature of a class's first base."""
    name = ast.unparse(definition.bases[0]) if definition.bases else "object"
    if name == "object":
        return Signature()
    head, _, rest = name.partition(".")
    found = find_definition(f"{_full_name(module, head)}.{rest}") if rest else find_name(module, name)
    return signature_of(found[0], found[1]) if found and isinstance(found[1], ast.ClassDef) else None


def _full_name(module: Module, head: str) -> str:
    """The dotted name of what `import` bound to a name: `nn` of `from torch import nn` is `torch.nn`."""
    for statement in _statements(module):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            for alias in statement.names:
                if (alias.asname or alias.name) == head:
                    return alias.name if isinstance(statement, ast.Import) else f"{statement.module}.{alias.name}"
    return head


def _given_to_super(init: ast.FunctionDef) -> set[str] | None:
    """The names that `super().__init__(name=..., **kwargs)` gives itself; None if the kwargs are not passed on."""
    passed_on = f"**{init.args.kwarg.arg}" if init.args.kwarg else ""
    for node in ast.walk(init):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__":
            given = {keyword.arg or f"**{ast.unparse(keyword.value)}" for keyword in node.keywords}
            if passed_on in given:
                return given - {passed_on}
    return None
