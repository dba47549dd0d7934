"""Parses C++ with a real grammar and evaluates constant expressions: no preprocessor, no types, no other files."""

from __future__ import annotations

import ast
import functools
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import tree_sitter
import tree_sitter_cpp
from tree_sitter import Node

from base_images.errors import SourceError

PARAMETERS = "common_params"
"""The type of `params` in llama.cpp."""

_FORMAT_MACRO = re.compile(r"\bPRI([diouxX])(?:8|16|32|64|MAX|PTR)\b")
"""Macros of <cinttypes>, which are string literals: the grammar knows no macro between literals."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """The source of an expression that cannot be evaluated here, such as a constant or a function of another file."""

    text: str

    @property
    def is_constant(self) -> bool:
        """Whether this is the name of a constant, such as `GGML_TYPE_F16`."""
        return re.fullmatch(r"[A-Z][A-Z0-9_]*", self.text) is not None

    @property
    def is_parameter(self) -> bool:
        """Whether this is a parameter that the header lacks."""
        return re.fullmatch(r"params(\.\w+)+", self.text) is not None


_EVALUATIONS = 100_000
"""Of one file, so that tables that name each other end; llama.cpp b10454 takes 3,000."""

_INTEGER_BITS = 64

Value: TypeAlias = "str | int | float | tuple[Value, ...] | Code"


@dataclass(frozen=True, kw_only=True)
class Field:
    """A member of a struct, or a table.

    Attributes:
        type: its type without `struct`, `enum` and `std::vector`.
        initializer: its initializer; None if it has none.
    """

    type: str
    initializer: Node | None


# The syntax tree.


def parse(text: str) -> Node:
    """Returns the root of a file's syntax tree; parts that the grammar does not know are error nodes."""
    literals = _FORMAT_MACRO.sub(lambda macro: f'"{macro[1]}"'.ljust(len(macro[0])), text)
    return _parser().parse(literals.encode()).root_node


@functools.cache
def _parser() -> tree_sitter.Parser:
    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_cpp.language()))


def require_whole(node: Node, name: str) -> None:
    """Raises an error if the grammar does not know a part of a node.

    Raises:
        SourceError: a part is unknown; the error names its line in the file `name`.
    """
    if not node.has_error:
        return
    while not node.is_error and (broken := [child for child in node.children if child.has_error or child.is_missing]):
        node = broken[0]
    raise SourceError(f"{name} cannot be parsed as C++ at line {node.start_point.row + 1}: {code(node)[:60]!r}.")


def children(node: Node | None) -> list[Node]:
    """Returns the named children of a node without comments; empty for None."""
    return [child for child in node.named_children if child.type != "comment"] if node else []


def code(node: Node | None) -> str:
    """Returns the source of a node on one line; empty for None."""
    return " ".join(_decoded(node).split()) if node else ""


def _decoded(node: Node) -> str:
    return (node.text or b"").decode(errors="replace")


def part(node: Node, field: str) -> str:
    """Returns the source of a node's field of the grammar, such as `operator`; empty if the node lacks it."""
    return code(node.child_by_field_name(field))


def descendants(node: Node, *types: str) -> Iterator[Node]:
    """Yields the outermost nodes of these types below a node, in source order."""
    for child in node.named_children:
        if child.type in types:
            yield child
        else:
            yield from descendants(child, *types)


def every(node: Node, *types: str) -> Iterator[Node]:
    """Yields all nodes of these types below a node, in source order."""
    for child in descendants(node, *types):
        yield child
        yield from every(child, *types)


def parameter(node: Node) -> tuple[str, ...]:
    """Returns the path (a, b) of `params.a.b`; empty for any other expression."""
    if node.type != "field_expression":
        return ()
    owner, name = node.children[0], part(node, "field")
    path = parameter(owner)
    return (*path, name) if path or code(owner) == "params" else ()


# Names and expressions.


class Scope:
    """Resolves names in a source file, with the structs and enums of a header.

    Attributes:
        functions: the bodies of the file's functions by qualified name, such as `a::b`.
        tables: the file's lists of constants by name.
        enums: the constants of the header's enums by the enum's name.
        structs: the members of the header's structs by the struct's name.
    """

    def __init__(self, source: Node, header: Node, names: dict[str, Value]) -> None:
        """Reads the declarations; `names` are the known values of local names."""
        self.functions = {
            part(declarator, "declarator"): body
            for function in descendants(source, "function_definition")
            if (body := function.child_by_field_name("body"))
            for declarator in descendants(function, "function_declarator", "compound_statement")
            if declarator.type == "function_declarator"
        }
        self.tables = {
            part(declarator, "declarator"): Field(type=_type(declaration), initializer=listed)
            for declaration in descendants(source, "declaration", "function_definition")
            for declarator in descendants(declaration, "init_declarator", "compound_statement")
            if (listed := declarator.child_by_field_name("value")) and listed.type == "initializer_list"
        }
        self.enums = {
            part(enum, "name"): tuple(part(constant, "name") for constant in descendants(enum, "enumerator"))
            for enum in descendants(header, "enum_specifier")
            if enum.child_by_field_name("body")
        }
        self.structs = {
            part(struct, "name"): dict(_fields(body))
            for struct in descendants(header, "struct_specifier")
            if (body := struct.child_by_field_name("body"))
        }
        self._names = names
        self._assigned: dict[tuple[str, ...], Value] = {}
        self._evaluations = 0

    def count(self, node: Node) -> None:
        """Counts an evaluation.

        Raises:
            RecursionError: there are too many, as in tables that name each other.
        """
        self._evaluations += 1
        if self._evaluations > _EVALUATIONS:
            raise RecursionError(f"more than {_EVALUATIONS} expressions, the last at line {node.start_point.row + 1}")

    def assign(self, assignment: Node) -> None:
        """Sets the initial value of a parameter from an assignment."""
        left, right = (assignment.child_by_field_name(side) for side in ("left", "right"))
        if left and right and (path := parameter(left)):
            self._assigned[path] = value_of(right, self)

    def field(self, path: tuple[str, ...]) -> Field | None:
        """Returns the member at a path of `PARAMETERS`, such as `sampling.top_k`."""
        struct, found = PARAMETERS, None
        for name in path:
            found = self.structs.get(struct, {}).get(name)
            if found is None:
                return None
            struct = found.type
        return found

    def initial(self, path: tuple[str, ...]) -> Value:
        """Returns the initial value of a parameter; empty without an initializer."""
        found = self.field(path)
        if path in self._assigned or found is None:
            return self._assigned.get(path, Code(text=".".join(("params", *path))))
        return value_of(found.initializer, self) if found.initializer else ""

    def name(self, name: str) -> Value:
        """Returns the value of an identifier."""
        if name in self.tables:
            return tuple(value_of(item, self) for item in children(self.tables[name].initializer))
        return self._names.get(name, Code(text=name))

    def holds(self, branch: Node) -> bool | None:
        """Returns whether the condition of an `if` is true; None if it cannot be evaluated, as that of any `#if`."""
        condition = branch.child_by_field_name("condition")
        return _truth(value_of(condition, self)) if condition else None


def _fields(body: Node) -> Iterator[tuple[str, Field]]:
    for declared in descendants(body, "field_declaration"):
        for number, child in enumerate(declared.children):
            if declared.field_name_for_child(number) == "declarator":
                is_set = [following.type for following in declared.children[number + 1 : number + 2]] == ["="]
                name = next(descendants(child, "field_identifier"), child)
                yield (
                    code(name),
                    Field(type=_type(declared), initializer=declared.children[number + 2] if is_set else None),
                )


def _type(declared: Node) -> str:
    kind = re.sub(r"std::vector<(.*)>", r"\1", part(declared, "type"))
    return kind.removeprefix("struct ").removeprefix("enum ")


def value_of(node: Node, scope: Scope) -> Value:
    """Evaluates an expression; returns its `Code` if it cannot be evaluated."""
    scope.count(node)
    inner = children(node)
    value: Value | None = None
    match node.type:
        case "identifier":
            value = scope.name(code(node))
        case "field_expression" if path := parameter(node):
            value = scope.initial(path)
        case "initializer_list":
            value = tuple(value_of(child, scope) for child in inner)
        case "concatenated_string":
            pieces = [text for child in inner if isinstance(text := value_of(child, scope), str)]
            value = "".join(pieces) if len(pieces) == len(inner) else None
        case "parenthesized_expression" | "condition_clause" | "cast_expression":
            value = value_of(inner[-1], scope)
            value = int(value) if isinstance(value, bool) and node.type == "cast_expression" else value
        case "subscript_expression":
            value = _item(value_of(inner[0], scope), value_of(children(inner[1])[0], scope))
        case "binary_expression" | "conditional_expression":
            value = _calculated(part(node, "operator"), [value_of(child, scope) for child in inner])
        case "call_expression":
            value = _called(node, scope)
        case _:
            value = _literal(node)
    return Code(text=code(node)) if value is None else value


def _literal(node: Node) -> Value | None:
    match node.type:
        case "string_literal":
            return "".join(map(_piece, node.named_children))
        case "number_literal":
            return _number(code(node))
        case "true" | "false":
            return node.type == "true"
        case _:
            return None


def _item(listed: Value, index: Value) -> Value | None:
    is_in = isinstance(listed, tuple) and isinstance(index, int) and 0 <= index < len(listed)
    return listed[index] if is_in else None  # type: ignore[index]  # is_in says so


def _calculated(sign: str, values: list[Value]) -> Value | None:
    """Applies an operator to two values, or `? :` to three; None if the result is unknown."""
    match sign, values:
        case "", [condition, yes, no] if (holds := _truth(condition)) is not None:
            return yes if holds else no
        case "==", [Code(is_constant=True), Code(is_constant=True)] | [int(), int()]:
            return values[0] == values[1]
        case "/", [int() as left, int() as right] if right:
            return left // right
        case "*", [int() as left, int() as right] if (left * right).bit_length() <= _INTEGER_BITS:
            return left * right
        case _:
            return None


def _called(node: Node, scope: Scope) -> Value | None:
    """Evaluates a call of the few functions whose meaning follows from their name; None for others."""
    function = node.children[0]
    name = code(function)
    given = [value_of(argument, scope) for argument in children(node.child_by_field_name("arguments"))]
    owner = value_of(function.children[0], scope) if function.type == "field_expression" else None
    match part(function, "field"), owner, given:
        case "c_str", str(), []:
            return owner
        case _, None, [_, value] if name.startswith("std::vector<"):  # the value repeated; once is enough
            return (value,)
        case _, None, [value] if enum := re.fullmatch(r"(\w+)_name(?:_str)?", name):
            return word if (word := spelled(value, enum[1])) != value else None
        case _:
            return None


def spelled(value: Value, enum: str) -> Value:
    """Returns a constant of an enum as users type it: `LLAMA_SPLIT_MODE_ROW` of `llama_split_mode` is `row`.

    The functions that convert them are in other files; a test compares this rule with a built server. Enums of common.h
    do not follow the rule: only some replace the underscore with a hyphen.
    """
    match value:
        case Code(text=text) if text.startswith(prefix := f"{enum.upper()}_") and not enum.startswith("common_"):
            return text.removeprefix(prefix).lower()
        case _:
            return value


def shown(value: Value) -> str:
    """Returns a value as text, numbers without insignificant digits."""
    match value:
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.12g}"
        case tuple():
            return ", ".join(map(shown, value)) or "empty"
        case Code():
            return value.text
        case _:
            return str(value) or "empty"


def _truth(value: Value) -> bool | None:
    return bool(value) if isinstance(value, int | float) else None


def _piece(node: Node) -> str:
    """Returns a part of a string literal; Python evaluates the escapes as C++ does."""
    text = _decoded(node)
    if node.type != "escape_sequence":
        return text
    try:
        with warnings.catch_warnings(action="error"):
            return str(ast.literal_eval(f'"{text}"')).encode().decode()
    except (SyntaxError, ValueError, Warning):
        return text


def _number(text: str) -> Value | None:
    digits = text.replace("'", "").lower()
    for convert, suffix in ((functools.partial(int, base=0), "ulz"), (float, "lf")):
        try:
            return convert(digits.rstrip(suffix))
        except ValueError:
            continue
    return None
