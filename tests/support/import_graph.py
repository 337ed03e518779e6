"""The graph of imports between the modules of the checkout, read from their sources without running them."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class Import:
    """One imported module, as `path:line` of an error message needs it."""

    module: str
    line: int
    for_types_alone: bool = False  # below `if TYPE_CHECKING:`


@dataclass(frozen=True)
class Graph:
    """Modules by dotted name, each with what it imports: modules of ours, and other packages by their first name.

    A package's own module (its `__init__.py`) has the package's name. Imports inside functions count too.
    """

    ours: dict[str, list[Import]] = field(default_factory=dict)
    others: dict[str, list[Import]] = field(default_factory=dict)

    @classmethod
    def of_sources(cls, sources: Mapping[str, str]) -> Self:
        """The graph of modules given as dotted name → source; `NAME.__init__` is the module of package NAME."""
        packages = {name.removesuffix(".__init__") for name in sources if name.endswith(".__init__")}
        known = {name.removesuffix(".__init__") for name in sources}
        graph = cls()
        for name, source in sources.items():
            module = name.removesuffix(".__init__")
            package = module if module in packages else module.rpartition(".")[0]
            imports = [*imports_in(ast.parse(source), package=package, known=known)]
            tops = {each.partition(".")[0] for each in known}
            graph.ours[module] = [
                each for each in imports if each.module.partition(".")[0] in tops and each.module != module
            ]
            graph.others[module] = [each for each in imports if each.module.partition(".")[0] not in tops]
        return graph

    @classmethod
    def of_checkout(cls, root: Path, packages: Iterable[str]) -> Self:
        """The graph of every Python file below these folders of `root`."""
        paths = [path for package in packages for path in sorted((root / package).rglob("*.py"))]
        return cls.of_sources(
            {".".join(path.relative_to(root).with_suffix("").parts): path.read_text(encoding="utf-8") for path in paths}
        )

    def edges(self) -> Iterator[tuple[str, Import]]:
        for module, imports in self.ours.items():
            for imported in imports:
                yield module, imported

    def reached_from(self, module: str) -> dict[str, list[str]]:
        """Every module of ours that an import of `module` can load → a shortest chain of imports to it."""
        chains = {module: [module]}
        queue = [module]
        for current in queue:
            for imported in self.ours.get(current, ()):
                if imported.module not in chains:
                    chains[imported.module] = [*chains[current], imported.module]
                    queue.append(imported.module)
        return chains

    def circles(self) -> list[list[str]]:
        """The circles between modules, and between packages at every depth.

        In each package, its modules and its sub-packages (each taken as a whole) must have an order. A circle is a list
        of the names in it, of which each imports the next and the last the first.
        """
        siblings: dict[str, dict[str, set[str]]] = {}
        for module, imported in self.edges():
            package, child, other = fork(self.place(module), self.place(imported.module))
            if child != other:
                siblings.setdefault(package, {}).setdefault(child, set()).add(other)
        return [circle for graph in siblings.values() for circle in circles_of(graph)]

    def place(self, module: str) -> list[str]:
        """The path to a module; a package's own module stands beside its other modules."""
        is_package = any(name.startswith(f"{module}.") for name in self.ours)
        return [*module.split("."), *(["__init__"] if is_package else [])]


def imports_in(tree: ast.Module, *, package: str, known: set[str]) -> Iterator[Import]:
    """What a module in `package` imports; `from x import y` imports x.y where that is a known module, otherwise x.

    In a module that calls `import_module`, each string that is the name of a known module counts as an import.
    """
    dynamic = any("import_module" in (getattr(node, "attr", ""), getattr(node, "id", "")) for node in ast.walk(tree))
    typed = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for statement in branch.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, id(node) in typed)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield Import(name if name in known else base, node.lineno, id(node) in typed)
        elif dynamic and isinstance(node, ast.Constant) and node.value in known:
            yield Import(node.value, node.lineno)


def fork(first: list[str], second: list[str]) -> tuple[str, str, str]:
    """The package in which two paths part, and the first names of each in it, with the package before them."""
    depth = 0
    while depth < min(len(first), len(second)) - 1 and first[depth] == second[depth]:
        depth += 1
    return ".".join(first[:depth]), ".".join(first[: depth + 1]), ".".join(second[: depth + 1])


def circles_of(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """One circle for each group of nodes that reach each other."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        queue = [start]
        for node in queue:
            for following in sorted(graph.get(node, ())):
                if following not in seen:
                    seen.add(following)
                    queue.append(following)
        reach[start] = seen
    circles = []
    covered: set[str] = set()
    for start in sorted(graph):
        if start in covered or start not in reach[start]:
            continue
        covered |= {node for node in reach[start] if start in reach.get(node, ())}
        circles.append(shortest_circle(graph, start))
    return circles


def shortest_circle(graph: Mapping[str, set[str]], start: str) -> list[str]:
    chains = {node: [start, node] for node in graph[start]}
    queue = sorted(graph[start])
    for node in queue:
        if node == start:
            return chains[node][:-1]
        for following in sorted(graph.get(node, ())):
            if following not in chains:
                chains[following] = [*chains[node], following]
                queue.append(following)
    raise AssertionError(f"no circle through {start}")
