"""What our checks and the consumer rely on in llama-server: its address, paths, version and log lines."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tree_sitter import Node

from base_images.recipes import cpp_source
from base_images.recipes.cpp_source import children, code, part
from base_images.recipes.statements import ALL, Area, Statements, Subject

FILES = (
    "common/arg.cpp",
    "common/common.h",
    "common/build-info.cpp.in",
    "src/llama-context.cpp",
    "src/llama-kv-cache.cpp",
    "src/llama-model.cpp",
    "tools/server/*.cpp",
)
"""The files that state them, as patterns."""

PATHS = (
    "/health",
    "/v1/models",
    "/completion",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/embeddings",
    "/tokenize",
)
"""The paths that the smoke test and the consumer request."""

LOG_LINES = (
    "listening on",
    "offloaded %d",
    "model buffer size",
    "KV buffer size",
    "flash_attn = %s",
    "%s enabled",
    "not supported, set to disabled",
    "is assigned to device %s but",
)
"""Parts of the log lines that the contract and the smoke test read, as in llama.cpp's formats."""

VERSION = "version: %"
"""The start of the line of `llama-server --version`."""

_ROUTE = re.compile(r"(?:get|post|put|del|delete)", re.IGNORECASE)
_ADDRESSES = {"port": "default port", "hostname": "default address", "hostnames": "default address"}
ARGUMENTS = {"default port": "--port", "default address": "--host"}
"""The arguments whose defaults `default port` and `default address` are."""

_PADDING = re.compile(r"%-?\d+s")
_PUBLIC = re.compile(r"\w*public_endpoints|endpoints")


def server(path: str, text: str) -> Statements:
    """Returns what a C++ file says about the server's contract. Unknown C++ is skipped: others state the rest."""
    if not _mentions(text):
        return {}
    found: Statements = {}
    for what, value in sorted(_stated(cpp_source.parse(text), path)):
        subject = Subject(area=Area.SERVER, variants=ALL, what=what)
        found[subject] = tuple(dict.fromkeys((*found.get(subject, ()), value)))
    return found


def _mentions(text: str) -> bool:
    # Most files say nothing here, and parsing is what takes the time.
    needles = (*LOG_LINES, VERSION, *(f'"{path}"' for path in PATHS), "struct common_params", "flash_attn")
    return any(needle in text for needle in needles)


def _stated(root: Node, path: str) -> Iterator[tuple[str, str]]:
    """Yields the statements of a file: the subject and the value."""
    if path.endswith("common.h"):
        yield from _addresses(root)
        return
    for call in cpp_source.every(root, "call_expression"):
        yield from _routes(call)
        yield from _lines(call)
    for declared in cpp_source.every(root, "init_declarator"):
        if _PUBLIC.fullmatch(part(declared, "declarator")):
            yield from ((f"{each} without an API key", "answered") for each in _requested(declared))


def _addresses(root: Node) -> Iterator[tuple[str, str]]:
    for declared in cpp_source.every(root, "field_declaration"):
        if what := _ADDRESSES.get(part(declared, "declarator")):
            values = cpp_source.every(declared, "string_literal", "number_literal")
            yield what, ", ".join(code(value).strip('"') for value in values)


def _routes(call: Node) -> Iterator[tuple[str, str]]:
    method = part(call.children[0], "field")
    if _ROUTE.fullmatch(method):
        # Older servers put a prefix before the path.
        given = children(call.child_by_field_name("arguments"))
        yield from ((f"{method.upper()} {each}", "answered") for node in given[:1] for each in _requested(node))


def _requested(node: Node) -> list[str]:
    literals = [node] if node.type == "string_literal" else cpp_source.every(node, "string_literal")
    return [path for literal in literals if (path := code(literal).strip('"')) in PATHS]


def _lines(call: Node) -> Iterator[tuple[str, str]]:
    function, given = part(call, "function"), children(call.child_by_field_name("arguments"))
    by = f"{function} to {code(given[0])}" if function == "fprintf" and given else function
    # Without the padding, which the checks do not mind.
    for literal in (_PADDING.sub("%s", " ".join(_literal(node).split())) for node in given):
        if literal.startswith(VERSION):
            yield "output of --version", f"{literal} ({by})"
        yield from ((f"log line {line!r}", f"{literal} ({by})") for line in LOG_LINES if line in literal)


def _literal(node: Node) -> str:
    """Returns the text of a literal or of literals in a row; empty for others."""
    if node.type == "string_literal":
        return code(node).strip('"').removesuffix("\\n")
    if node.type == "concatenated_string":
        return "".join(map(_literal, children(node)))
    return ""
