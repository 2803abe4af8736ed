"""Rules of the code's structure: layout, imports, docstrings, private names."""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "src" / "vitlab"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}
NAMES = {file: ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in FILES}
MODULES = {name.removesuffix(".__init__") for name in NAMES.values()}
PUBLIC = {"_exit"}  # of os: documented, in spite of its name
QUESTION_WORDS = ("What", "Where", "Which", "How", "Who", "When", "Why", "Whether")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_says_in_its_first_line_what_it_is_for(file: Path) -> None:
    first = (ast.get_docstring(TREES[file]) or "").partition("\n")[0]
    assert first, "no docstring"
    assert len(first) <= 80
    assert first.split()[0] not in QUESTION_WORDS


def test_no_two_modules_have_one_name() -> None:
    counts = Counter(file.stem for file in FILES if file.stem not in ("__init__", "__main__"))
    assert [name for name, count in counts.items() if count > 1] == []


def test_few_modules_lie_beside_the_packages() -> None:
    assert len([file for file in PACKAGE.glob("*.py") if file.stem not in ("__init__", "__main__")]) <= 21


def test_packages_import_each_other_in_one_direction() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for file, tree in TREES.items():
        for imported in _imports(tree):
            source, target = _unit(NAMES[file]), _unit(imported)
            if source != target:
                graph[source].add(target)
    cycle = _find_cycle(graph)
    assert cycle is None, " -> ".join(cycle or [])


def test_private_names_of_other_libraries_are_in_compat_alone() -> None:
    ours = PUBLIC.union(*(_private_definitions(tree) for tree in TREES.values()))
    found = []
    for file, tree in TREES.items():
        if file.name != "compat.py":
            found += [f"{file.relative_to(PACKAGE)}:{line} {name}" for line, name in _foreign_private(tree, ours)]
    assert found == []


def _imports(tree: ast.AST) -> Iterator[str]:
    """Modules of vitlab that a module imports, also inside functions, but not for type checking alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "vitlab":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "vitlab")
        yield from _imports(node)


def _unit(module: str) -> str:
    """A package below vitlab, or a module beside the packages."""
    return module.split(".")[1] if "." in module else module


def _find_cycle(graph: dict[str, set[str]]) -> list[str] | None:
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        for target in sorted(graph.get(node, ())):
            cycle = visit(target, [*path, node])
            if cycle:
                return cycle
        done.add(node)
        return None

    return next((cycle for node in sorted(graph) if (cycle := visit(node, []))), None)


def _is_private(name: str) -> bool:
    return name.startswith("_") and not re.fullmatch(r"__\w+__", name) and name != "_"


def _private_definitions(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and _is_private(node.name):
            yield node.name
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.id if isinstance(node, ast.Name) else node.attr
            if _is_private(name) and (isinstance(node, ast.Name) or ast.unparse(node.value) == "self"):
                yield name


def _foreign_private(tree: ast.AST, ours: set[str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] != "vitlab":
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from ((node.lineno, name) for name in names if _is_private(name))
        elif isinstance(node, ast.Attribute) and _is_private(node.attr) and node.attr not in ours:
            yield node.lineno, ast.unparse(node)
