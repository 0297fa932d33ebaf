"""Structure of the packages as figures: `make structure`.

A package's rooms are its direct children: modules, and folders with everything in them. Floors are the rooms on the
longest chain of imports. Arrows are the pairs of rooms of which one imports the other. Imports for type checking only
do not count.
"""

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGES = ("infra", "sharding", "ssl_core", "evaluation", "launch", "sternum")

Graph = Mapping[str, set[str]]


@dataclass(frozen=True)
class Structure:
    """Figures of one package, as the module's docstring defines them."""

    rooms: int
    floors: int
    arrows: int


def module_imports(root: Path, packages: Iterable[str] = PACKAGES) -> dict[str, set[str]]:
    """Return the modules of the packages below `root`, each with those of them that it imports."""
    files = {_module(root, file): file for package in packages for file in (root / package).rglob("*.py")}
    return {
        module: {
            imported
            for name in imported_names(ast.parse(file.read_text()))
            if (imported := _longest_known(name, files)) and imported != module
        }
        for module, file in files.items()
    }


def _module(root: Path, file: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(node: ast.AST, *, in_functions: bool = True) -> Iterator[str]:
    """Yield the dotted names that a module imports, or only those imported along with it (`in_functions` false).

    `from a import b` yields a.b, which need not be a module.
    """
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    for child in ast.iter_child_nodes(node):
        if in_functions or not isinstance(child, ast.FunctionDef):
            yield from imported_names(child, in_functions=in_functions)


def _longest_known(name: str, modules: Iterable[str]) -> str | None:
    parts = name.split(".")
    prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in modules), None)


def rooms_of(package: str, imports: Graph) -> dict[str, set[str]]:
    """Return the rooms of a package, each with the rooms that it imports; the package's own `__init__` is none."""

    def room(module: str) -> str | None:
        parts = module.split(".")
        return parts[1] if parts[0] == package and len(parts) > 1 else None

    rooms: dict[str, set[str]] = {}
    for module, imported in imports.items():
        if (own := room(module)) is not None:
            rooms.setdefault(own, set()).update(other for name in imported if (other := room(name)) not in (None, own))
    return rooms


def structure_of(package: str, imports: Graph) -> Structure:
    """Count the rooms, floors and arrows of a package."""
    rooms = rooms_of(package, imports)
    return Structure(len(rooms), _longest_chain(rooms), sum(map(len, rooms.values())))


def _longest_chain(graph: Graph) -> int:
    """Return the nodes on the longest path, where a cycle counts as one chain of its nodes."""
    cycles = strongly_connected(graph)
    cycle_of = {node: number for number, cycle in enumerate(cycles) for node in cycle}

    @cache
    def height(number: int) -> int:
        below = {cycle_of[target] for node in cycles[number] for target in graph[node]} - {number}
        return len(cycles[number]) + max(map(height, below), default=0)

    return max(map(height, range(len(cycles))), default=0)


def folder_cycles(imports: Graph) -> list[list[str]]:
    """Return the groups of folders that import each other, directly or through others."""

    def folder(module: str) -> str:
        return module if any(name.startswith(f"{module}.") for name in imports) else module.rpartition(".")[0]

    folders: dict[str, set[str]] = {}
    for module, imported in imports.items():
        folders.setdefault(folder(module), set()).update(map(folder, imported))
    return [cycle for cycle in strongly_connected(folders) if len(cycle) > 1]


def strongly_connected(graph: Graph) -> list[list[str]]:
    """Return the strongly connected components, each sorted."""
    reachable = {node: _reachable(graph, node) for node in graph}
    components = {
        tuple(sorted({node} | {other for other in reachable[node] if node in reachable[other]})) for node in graph
    }
    return [list(component) for component in sorted(components)]


def _reachable(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for target in graph[waiting.pop()] - seen:
            seen.add(target)
            waiting.append(target)
    return seen


def main(root: Path) -> None:
    """Print the figures of the packages below `root`."""
    imports = module_imports(root)
    sys.stdout.write(f"{'package':<12}{'rooms':>7}{'floors':>8}{'arrows':>8}\n")
    for package in PACKAGES:
        figures = structure_of(package, imports)
        sys.stdout.write(f"{package:<12}{figures.rooms:>7}{figures.floors:>8}{figures.arrows:>8}\n")
    cycles = folder_cycles(imports)
    sys.stdout.write(f"folder cycles: {len(cycles)}\n")
    for cycle in cycles:
        sys.stdout.write(f"  {', '.join(cycle)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1])
