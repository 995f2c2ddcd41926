"""Imports point down only. Parses the package's source and holds it to the layers of the architecture."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "streamq"

# From the bottom up. Units of one layer may import each other, unless they are listed in APART.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "clock"),
    ("model",),
    ("codec", "crypto", "cron"),
    ("broker",),
    ("client", "worker", "inspector"),
    ("app", "task"),
    ("__init__",),
    ("cli", "web", "metrics", "testing", "__main__"),
)
# Units of one layer that never import each other.
APART = (
    frozenset({"client", "worker", "inspector"}),
    frozenset({"cli", "web", "metrics", "testing"}),
)
# A library is imported in one place alone, so that it can be changed or dropped there.
HOMES = {
    "redis": "streamq/broker/",
    "hiredis": "streamq/broker/",
    "cbor2": "streamq/codec.py",
    "croniter": "streamq/cron.py",
    "cryptography": "streamq/crypto/",
    "typer": "streamq/cli/",
    "rich": "streamq/cli/",
}
# These order and run the components, so the components do not know them.
CONDUCTORS = {"worker", "supervisor"}
# And whatever else in streamq/worker has a class with ``run_once``.
COMPONENTS = {
    "fetcher",
    "executor",
    "settler",
    "lease_keeper",
    "recoverer",
    "forwarder",
    "aggregator",
    "scheduler",
    "janitor",
    "caretaker",
    "auditor",
    "presence",
    "canceller",
}


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name: ``streamq/a/b.py`` line 3 imports ``streamq.c.d``."""

    file: str
    line: int
    module: str
    for_types: bool  # under ``if TYPE_CHECKING``

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"

    @property
    def importer(self) -> str:
        return self.file.removesuffix(".py").replace("/", ".")


def imports() -> Iterator[Import]:
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE.parent).as_posix()
        tree = ast.parse(path.read_text(), file)
        for_types = set(type_checking_only(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for module in modules(node):
                    yield Import(file, node.lineno, module, node in for_types)


def type_checking_only(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from ast.walk(node)


def modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    """The absolute names a statement imports; ``from streamq.a import b`` may mean the module ``b``."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.level == 0, "imports are absolute"
    source = node.module or ""
    return [f"{source}.{alias.name}" if is_module(source, alias.name) else source for alias in node.names]


def is_module(package: str, name: str) -> bool:
    folder = PACKAGE.parent.joinpath(*package.split("."))
    return (folder / f"{name}.py").is_file() or (folder / name).is_dir()


def unit(module: str) -> str:
    """The part of the package that a module belongs to: ``streamq.broker.keys`` -> ``broker``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def layer(name: str) -> int:
    for height, names in enumerate(LAYERS):
        if name in names:
            return height
    pytest.fail(f"streamq/{name} has no place in the layers: add it to LAYERS in {Path(__file__).name}")


ALL = list(imports())
INNER = [one for one in ALL if one.module.split(".")[0] == "streamq"]


def names(wrong: list[Import]) -> str:
    return "\n".join(map(str, wrong))


def test_there_are_imports_to_look_at() -> None:
    assert len(INNER) > 5


def test_every_import_points_down_or_stays_in_its_layer() -> None:
    wrong = [one for one in INNER if layer(unit(one.module)) > layer(unit(one.importer))]
    assert not wrong, names(wrong)


@pytest.mark.parametrize("apart", APART, ids=lambda group: "-".join(sorted(group)))
def test_neighbours_that_are_apart_do_not_import_each_other(apart: frozenset[str]) -> None:
    wrong = [
        one
        for one in INNER
        if {unit(one.importer), unit(one.module)} <= apart and unit(one.importer) != unit(one.module)
    ]
    assert not wrong, names(wrong)


@pytest.mark.parametrize("library", sorted(HOMES))
def test_a_library_has_one_home(library: str) -> None:
    wrong = [
        one for one in ALL if one.module.split(".")[0] == library and not one.file.startswith(HOMES[library])
    ]
    assert not wrong, names(wrong)


def components() -> set[str]:
    found = set(COMPONENTS)
    for path in (PACKAGE / "worker").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == "run_once":
                found.add(path.stem)
    return found - CONDUCTORS


def test_components_of_the_worker_do_not_import_each_other() -> None:
    def part(module: str) -> str:
        return module.removeprefix("streamq.worker.").split(".")[0]

    known = components()
    wrong = [
        one
        for one in INNER
        if part(one.importer) in known
        and part(one.module) in known | CONDUCTORS
        and part(one.importer) != part(one.module)
    ]
    assert not wrong, names(wrong)


def test_the_package_has_no_import_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for one in INNER:
        if not one.for_types:
            graph.setdefault(one.importer.removesuffix(".__init__"), set()).add(one.module)
    settled: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above[above.index(module) :], module])
        if module not in settled:
            for below in sorted(graph.get(module, ())):
                visit(below, (*above, module))
            settled.add(module)

    for module in sorted(graph):
        visit(module, ())
