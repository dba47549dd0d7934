"""The rooms of `scripts/base_images/` as a Mermaid graph of their imports."""

from __future__ import annotations

from graphlib import TopologicalSorter

import grimp

PACKAGE = "base_images"
GROUND = "ground"
"""The modules that lie in no room."""


def flowchart() -> str:
    """Returns the graph, each room above those that it imports, without the edges that follow from others."""
    edges = imports()
    reachable: dict[str, set[str]] = {}
    lines: list[str] = []
    for room in TopologicalSorter({room: sorted(edges[room]) for room in sorted(edges)}).static_order():
        further = {above for imported in edges[room] for above in reachable[imported]}
        reachable[room] = edges[room] | further
        if direct := sorted(edges[room] - further):
            lines.append(f"    {room} --> {' & '.join(direct)}")
    return "\n".join(["flowchart TD", *reversed(lines)]) + "\n"


def imports() -> dict[str, set[str]]:
    """Returns each room with the others that its modules import, inside functions too."""
    modules = grimp.build_graph(PACKAGE, cache_dir=None)
    packages = {module for module in modules.find_children(PACKAGE) if modules.find_children(module)}

    def room(module: str) -> str:
        package = ".".join(module.split(".")[:2])
        return package.removeprefix(f"{PACKAGE}.") if package in packages else GROUND

    edges: dict[str, set[str]] = {}
    for module in modules.modules:
        imported = modules.find_modules_directly_imported_by(module)
        edges.setdefault(room(module), set()).update({room(name) for name in imported} - {room(module)})
    return edges
