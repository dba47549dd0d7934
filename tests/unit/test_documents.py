"""The documents against the code; tests/image/test_readme.py runs their commands."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter

import grimp
import pytest
import tasks

from base_images import errors, settings
from base_images.contract import judge
from base_images.errors import BaseImagesError
from tests.support import documents

ENVIRONMENT = documents.TEXTS["docs/environment.md"]
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


def anchors(text: str) -> set[str]:
    """Returns the anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", documents.TEXTS)
def test_links_have_targets(name: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", documents.TEXTS[name]):
        path, _, anchor = target.partition("#")
        linked = (settings.ROOT / name).parent / path if path else settings.ROOT / name
        assert linked.is_file(), target
        assert not anchor or anchor in anchors(linked.read_text(encoding="utf-8")), target


def test_the_readme_is_short_and_links_to_every_other_document() -> None:
    readme = documents.TEXTS["README.md"]
    assert len(readme.splitlines()) <= 200
    others = set(documents.TEXTS) - {"README.md", "scripts/README.md"}
    assert [name for name in sorted(others) if f"]({name})" not in readme] == []


def test_the_map_has_every_room_and_commands_that_exist() -> None:
    rows = re.findall(r"^\| .+ \| `(\w+)`.* \| (.+) \|$", documents.TEXTS["scripts/README.md"], re.MULTILINE)
    assert sorted(room for room, _ in rows) == sorted(imports())
    for room, listed in rows:
        for command in re.findall(r"`([a-z-]+)`", listed):
            module = tasks.namespace[command].body.__module__
            assert module.removeprefix("base_images.cli.").partition("_")[0] == room


def test_the_contract_lists_the_rows_that_are_checked() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", documents.TEXTS["docs/contract.md"], re.MULTILINE)
    assert rows == [(str(number), title) for number, (title, _) in enumerate(judge._ROWS, start=1)]


def test_the_picture_of_the_architecture_shows_the_imports_of_the_code() -> None:
    [shown] = re.findall(r"^```mermaid\n(.*?)^```$", documents.TEXTS["docs/architecture.md"], re.MULTILINE | re.DOTALL)
    made = flowchart()
    assert shown == made, f"docs/architecture.md should have this graph:\n{made}"


def test_the_exit_codes_are_those_of_the_errors() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", ENVIRONMENT, re.MULTILINE)
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BaseImagesError)]
    assert rows == [(str(kind.exit_code), kind.__name__) for kind in sorted(kinds, key=lambda kind: kind.exit_code)]


def keys(tree: ast.AST) -> Iterator[ast.expr]:
    """Yields the keys that are looked up in `os.environ`, or in a parameter `environment`."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=mapping, attr="get"), args=[key, *_]):
                pass
            case ast.Subscript(value=mapping, slice=key):
                pass
            case _:
                continue
        if ast.unparse(mapping) in {"os.environ", "environment"}:
            yield key


def variables() -> Iterator[str]:
    """Yields the names of all environment variables that the code reads."""
    paths = [*(settings.ROOT / "scripts").rglob("*.py"), settings.ROOT / "tasks.py", settings.ROOT / "noxfile.py"]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    constants = {
        node.targets[0].id: str(node.value.value)
        for node in nodes
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    for function in nodes:
        if isinstance(function, ast.FunctionDef):
            for key in keys(function):
                name = ast.unparse(key).rpartition(".")[2]
                if isinstance(key, ast.Constant):
                    yield str(key.value)
                elif name in constants:
                    yield constants[name]
                else:  # a loop over names that the function has
                    texts = [str(node.value) for node in ast.walk(function) if isinstance(node, ast.Constant)]
                    yield from filter(re.compile(r"[A-Z]+(_[A-Z]+)+").fullmatch, texts)


def test_the_environment_variables_are_those_that_the_code_reads() -> None:
    table = re.findall(r"^\| (`.+?`) \|", ENVIRONMENT, re.MULTILINE)
    assert sorted(name for row in table for name in re.findall(r"[A-Z_]+", row)) == sorted(set(variables()))
