"""Imports run one way: which room may import which."""

import ast
import graphlib
import pathlib
import sys

import functional_opt as fo
import pytest


PACKAGE = pathlib.Path(fo.__file__).parent
JAX = {"jax", "jaxtyping", "numpy", "scipy"}  # what JAX itself requires


def imports(path):
    """The absolute names of all modules that a file imports, at any depth in it."""
    package = ["functional_opt", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = node.module.split(".") if node.module else []
            yield ".".join([*base, *module])


def files(room):
    path = PACKAGE / room
    found = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    assert found
    return found


def top(name):
    return name.split(".")[0]


@pytest.mark.parametrize("path", files("_slicing"), ids=lambda path: path.stem)
def test_slicing_knows_only_jax(path):
    for name in imports(path):
        standard = top(name) in sys.stdlib_module_names
        assert (
            standard or top(name) in JAX or name.startswith("functional_opt._slicing")
        ), name


ABOVE = ["_stages.local", "_stages.program", "_stages.axis", "_stages.report"]

# Each room, and what of the library it may not import.
WALLS = {
    "_stages/derive": ["_stages.run", "_stages.steps", *ABOVE],
    "_stages": ["_base", "_recipe", "_optimizers", "_schedules", "_codec", "_cli"],
    "_stages/run": ["_stages.steps", *ABOVE],
    "_transformations": ["_stages", "_optimizers", "_recipe", "_codec", "_base"],
    "_schedules": ["_stages", "_optimizers", "_recipe", "_codec"],
    "_codec": ["_stages", "_checkpoints", "_cli"],
}


@pytest.mark.parametrize("room", WALLS)
def test_walls(room):
    for path in files(room):
        for name in imports(path):
            for wall in WALLS[room]:
                beyond = f"functional_opt.{wall}"
                assert name != beyond and not name.startswith(beyond + "."), path


def test_no_circle_of_imports():
    """At any depth: a circle that a function hides is one, too."""
    paths = {path: module_of(path) for path in sorted(PACKAGE.rglob("*.py"))}
    modules = set(paths.values())
    imported = {
        module: {
            name if name in modules else name.rpartition(".")[0]
            for name in imports(path)
        }
        for path, module in paths.items()
    }
    graph = {module: names & modules - {module} for module, names in imported.items()}
    list(graphlib.TopologicalSorter(graph).static_order())


def module_of(path):
    parts = ["functional_opt", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TESTS = pathlib.Path(__file__).parent
MOST_PRIVATE = 10


def is_private_import(node):
    if not isinstance(node, ast.Import | ast.ImportFrom):
        return False
    start = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
    modules = [start + alias.name for alias in node.names]
    return any(module.startswith("functional_opt._") for module in modules)


def test_tests_import_public_names():
    """But for those of `rooms`, each of which has its reason above it."""
    found = {}
    for path in TESTS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.stmt) and is_private_import(node):
                above = path.read_text().splitlines()[node.lineno - 2]
                found[path.name, node.lineno] = above
    assert {name for name, _ in found} == {"rooms.py"}
    assert len(found) <= MOST_PRIVATE
    assert all(line.startswith("# ") for line in found.values())


def test_the_map_of_the_stages_fits_on_a_screen():
    assert len((PACKAGE / "_stages" / "__init__.py").read_text().splitlines()) <= 40
