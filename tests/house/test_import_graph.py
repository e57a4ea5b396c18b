"""No circle among modules and no import upwards, imports inside functions and for types included."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {"afn_kernels": "afn_kernels", "afn_distributed": "distributed", "afn_model": "afn_model", "bench": "bench"}

EXTENSION = ROOT / "csrc/cpu"  # compiled: imports nothing


def modules() -> dict[str, Path]:
    """Every module by its dotted name."""
    found = {}
    for package, folder in PACKAGES.items():
        for file in (ROOT / folder).rglob("*.py"):
            parts = [package, *file.relative_to(ROOT / folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found | {"afn_kernels._cpu": EXTENSION}


def imports(source: str, known: dict[str, Path]) -> set[str]:
    """The known modules that a source imports anywhere; ``from package import module`` is the module alone."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in names}
    return found & known.keys()


def circle(graph: dict[str, set[str]]) -> list[str] | None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def test_no_import_closes_a_circle():
    known = modules()
    graph = {
        name: imports(file.read_text(encoding="utf-8"), known) - {name}
        for name, file in known.items()
        if file != EXTENSION
    }
    assert sum(map(len, graph.values())) > 500, "the imports are not seen"
    found = circle(graph)
    assert found is None, " <- ".join(found)


def test_a_hidden_circle_is_found():
    known = dict.fromkeys(("a", "b", "c"), Path())
    sources = {
        "a": "from b import x",
        "b": "def f():\n    import c",
        "c": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a import y",
    }
    assert set(circle({name: imports(source, known) for name, source in sources.items()})) == {"a", "b", "c"}


def test_imports_are_absolute():
    for name, file in modules().items():
        if file == EXTENSION:
            continue
        relative = [
            node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom) and node.level
        ]
        assert not relative, name


def test_no_name_of_a_package_hides_one_of_its_modules():
    """``from package import module`` gives whatever the package calls so: it must be the module."""
    for name, file in modules().items():
        if file.name != "__init__.py":
            continue
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module != name:
                bound = {alias.asname or alias.name for alias in node.names}
                hidden = {module for module in bound if (file.parent / f"{module}.py").exists()}
                allowed = {alias for alias in hidden if node.module == f"{name}.{alias}"}
                assert hidden <= allowed, f"{name}: {hidden} from {node.module}"
