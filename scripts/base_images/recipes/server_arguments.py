"""The arguments and environment variables of llama-server, read from llama.cpp's source with a real C++ grammar.

`common_params_parser_init` of `common/arg.cpp` adds one `common_arg` per argument, and `common/common.h` initializes
the parameters. Values that neither file defines stay as written, such as the name of a constant. An argument that
cannot be read is an error: none is skipped silently.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tree_sitter import Node

from base_images.errors import SourceError
from base_images.recipes import cpp_source
from base_images.recipes.cpp_source import Code, Field, Scope, Value, children, code, every, part, shown, value_of

ARGUMENTS, DEFAULTS = FILES = ("common/arg.cpp", "common/common.h")
"""The two files of llama.cpp that define them."""

_INIT = "common_params_parser_init"
_SERVER = Code(text="LLAMA_EXAMPLE_SERVER")
_COMMON = Code(text="LLAMA_EXAMPLE_COMMON")

_NEGATION = ("LLAMA_ARG_", "LLAMA_ARG_NO_")
"""The replacement in a variable's name that turns an argument off (`common_arg::get_value_from_env`)."""

_ON_OFF = {"is_truthy": "on", "is_falsey": "off", "is_autoy": "auto"}
"""Functions of arg.cpp that accept several spellings of a word, and the spelling in help texts."""

_APPENDS = {"push_back", "emplace_back", "insert"}
_PRINTF = re.compile(r"%(?:%|[-+ #0]*\d*(?:\.\d+)?(?:hh?|ll?|z|j|t)?([a-zA-Z]))")
_DEFAULT = re.compile(r"\bdefault\s*[:=]\s*", re.IGNORECASE)
_DEFAULT_ENDS = (",", ";", "\n", " = ", ". ")
_WORD = r"[\w.+-]+"
_CHOICES = re.compile(rf"\W?{_WORD}(\s*\|\s*{_WORD})+\W?|\{{{_WORD}(\s*,\s*{_WORD})+\}}")
_LISTED = re.compile(rf"\b(?:allowed|available) \w+: ({_WORD}(?:, {_WORD})*)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Argument:
    """An argument of llama-server.

    Attributes:
        names: its spellings, such as `-c` and `--ctx-size`.
        negated: the spellings that turn it off, such as `--no-mmap`.
        environment: its variables: that of `set_env`, and the LLAMA_ARG_NO_ form if it can be turned off.
        hints: the names of its values in its help, such as `N` or `{none,layer,row}`; empty if it takes none.
        values: the words that its handler compares, or the constants of the table or enum that it looks them up in;
            else the words that its hint or help text lists. It may accept others, such as a number.
        default: the text after `default:` in its help, with `params.x` replaced by the initial value; empty if the
            help states none, or uses a function of another file.
        parameter: the one parameter that it sets, such as `load_mode`; empty if it sets none or several.
        initial: the initial value of that parameter; empty without one.
        condition: the condition in the source under which it is added, if the source alone does not decide it.
        refused: the error message of llama-server, if the argument always ends in an error.
    """

    names: tuple[str, ...]
    negated: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    default: str = ""
    parameter: str = ""
    initial: str = ""
    condition: str = ""
    refused: str = ""

    @property
    def things(self) -> tuple[str, ...]:
        """Everything that names it: each spelling and each variable."""
        return (*self.names, *self.negated, *self.environment)

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that its hints list, as in `[on|off]` and `{none,layer,row}`; `N` and `FILE` list none."""
        return _choices(self.hints)

    @property
    def takes(self) -> str:
        """Its values, in words."""
        words = f" ({', '.join(self.values)})" if self.values and not self.choices else ""
        return " ".join(self.hints) + words if self.hints else "no value"

    @property
    def is_there(self) -> str:
        """When llama-server accepts it, in words."""
        return f"only if {self.condition}" if self.condition else "always"


def read(arg_cpp: str, common_h: str) -> tuple[Argument, ...]:
    """Returns the arguments of llama-server in source order, including those that it knows but refuses.

    As in `add_opt`, an argument belongs to llama-server if its examples include LLAMA_EXAMPLE_SERVER or
    LLAMA_EXAMPLE_COMMON and its excludes do not include LLAMA_EXAMPLE_SERVER. Both branches of an `if` or `#if` count
    if the build or the machine decides its condition; the argument then has that condition.

    Args:
        arg_cpp: `common/arg.cpp` of llama.cpp.
        common_h: `common/common.h` of the same commit.

    Raises:
        SourceError: the source differs from the known form; the error names the line.
    """
    try:
        return _read(arg_cpp, common_h)
    except RecursionError as error:
        raise SourceError(
            f"{ARGUMENTS} or {DEFAULTS} is nested too deeply, or refers to itself, to be read here ({error})."
        ) from error


def _read(arg_cpp: str, common_h: str) -> tuple[Argument, ...]:
    header = cpp_source.parse(common_h)
    scope = Scope(cpp_source.parse(arg_cpp), header, names={"ex": _SERVER})
    body = scope.functions.get(_INIT)
    if body is None:
        raise SourceError(f"{ARGUMENTS} has no {_INIT}, which its arguments were read from so far.")
    cpp_source.require_whole(body, ARGUMENTS)
    for struct in cpp_source.descendants(header, "struct_specifier"):
        if part(struct, "name").startswith(cpp_source.PARAMETERS):
            cpp_source.require_whole(struct, DEFAULTS)
    if cpp_source.PARAMETERS not in scope.structs:
        raise SourceError(f"{DEFAULTS} has no struct {cpp_source.PARAMETERS}, which defaults were read from so far.")
    added = (_argument(call, condition, scope) for call, condition in _added(body, scope))
    taken = tuple(argument for argument in added if argument)
    if not taken:
        raise SourceError(f"{ARGUMENTS} adds no argument in {_INIT}, where they all were so far.")
    return taken


def _added(node: Node, scope: Scope, condition: str = "") -> Iterator[tuple[Node, str]]:
    """Yields the calls of add_opt that llama-server may reach, with their condition; notes assignments in `scope`."""
    branches = [(child, condition) for child in children(node)]
    match node.type:
        case "call_expression" if part(node, "function") == "add_opt":
            yield node, condition
            return
        case "assignment_expression" if not condition:
            scope.assign(node)
        case "if_statement" | "preproc_if" | "preproc_ifdef" | "preproc_elif":
            alternative, holds = node.child_by_field_name("alternative"), scope.holds(node)
            clause = node.child_by_field_name("condition") or node.child_by_field_name("name") or node
            says = "not " * (node.children[0].type == "#ifndef") + (part(clause, "value") or code(clause))
            met, unmet = (" and ".join(filter(None, (condition, text))) for text in (says, f"not ({says})"))
            if holds is None:
                branches = [(child, unmet if child == alternative else met) for child, _ in branches]
            else:
                branches = [(child, condition) for child, _ in branches if (child == alternative) is not holds]
        case _:
            pass
    for child, depends in branches:
        yield from _added(child, scope, depends)


def _argument(call: Node, condition: str, scope: Scope) -> Argument | None:
    """Returns the argument that a call of add_opt adds; None if llama-server does not have it."""
    where = f"{ARGUMENTS} line {call.start_point.row + 1}"
    setters: dict[str, tuple[Value, ...]] = {}
    made = (_given(call) or [call])[0]
    while (chain := made.child_by_field_name("function")) and chain.type == "field_expression":
        setters[part(chain, "field")] = tuple(value_of(argument, scope) for argument in _given(made))
        made = chain.children[0]
    given = _given(made)
    if part(made, "function") != "common_arg" or len(given) < 3:  # noqa: PLR2004  # names, help text and handler
        raise SourceError(f"{where}: what is added is not common_arg(names, ..., help, handler).")
    examples, excludes = (
        _list(next(iter(setters.get(setter, ())), rule), f"{where}, {setter}")
        for setter, rule in (("set_examples", (_COMMON,)), ("set_excludes", ()))
    )
    if not {_SERVER, _COMMON} & {*examples} or _SERVER in excludes:
        return None
    names, *between = (value_of(argument, scope) for argument in given[:-2])
    negated = between.pop(0) if between and isinstance(between[0], tuple) else ()
    variables = _texts(setters.get("set_env", ()), where)
    if negated:
        variables = tuple(dict.fromkeys((*variables, *(variable.replace(*_NEGATION) for variable in variables))))
    handler, (text, values) = given[-1], _help(given[-2], scope)
    path, initial = _parameter(handler, scope)
    hints = tuple(map(shown, between))
    listed = tuple(word for words in _LISTED.findall(text) for word in words.split(", "))
    refusals = [_given(node) for node in every(handler, "call_expression") if part(node, "function") == "arg_removed"]
    return Argument(
        names=_texts(names, where),
        negated=_texts(negated, where),
        environment=variables,
        hints=hints,
        values=hints and (_values(handler, path, scope) or _choices(hints) or listed),
        default=stated(text, values),
        parameter=".".join(path),
        initial=shown(initial) if path else "",
        condition=condition,
        refused=shown(tuple(value_of(node, scope) for given in refusals for node in given)) if refusals else "",
    )


def _given(call: Node) -> list[Node]:
    return children(call.child_by_field_name("arguments"))


def _list(value: Value, where: str) -> tuple[Value, ...]:
    if not isinstance(value, tuple):
        raise SourceError(f"{where}: there is {shown(value)} where there were lists so far.")
    return value


def _texts(value: Value, where: str) -> tuple[str, ...]:
    texts = tuple(text for text in _list(value, where) if isinstance(text, str))
    if texts != value:
        raise SourceError(f"{where}: not every name of {shown(value)} is a literal.")
    return texts


def _choices(hints: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word for hint in hints if _CHOICES.fullmatch(hint) for word in re.findall(_WORD, hint))


# Help texts.


def _help(node: Node, scope: Scope) -> tuple[str, tuple[Value, ...]]:
    """Returns the printf format of a help text and its values."""
    if part(node, "function") == "string_format":
        text, *values = (value_of(argument, scope) for argument in _given(node))
        return (text if isinstance(text, str) else "", tuple(values))
    text = value_of(node, scope)
    return (text.replace("%", "%%") if isinstance(text, str) else "", ())


def stated(text: str, values: tuple[Value, ...] = ()) -> str:
    """Returns the text after the first `default:` of a help text, without quotes; empty if there is none.

    It ends at a comma, a semicolon, a closing bracket, the end of a sentence or line, or an explanation as in
    `0 = unlimited`. Values are filled in afterwards, so they may contain commas; with a value that cannot be evaluated
    the result is empty.

    Args:
        text: the help text, as a printf format.
        values: the values for the format.
    """
    found = _DEFAULT.search(text)
    if not found:
        return ""
    depth, end = 0, found.end()
    while end < len(text) and (depth or not text.startswith(_DEFAULT_ENDS, end)):
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        if depth < 0:
            break
        end += 1
    phrase = " ".join(text[found.end() : end].split())
    before, within = (
        sum(1 for conversion in _PRINTF.finditer(piece) if conversion[1]) for piece in (text[: found.end()], phrase)
    )
    used = values[before : before + within]
    if any(isinstance(value, Code) and not (value.is_constant or value.is_parameter) for value in used):
        return ""
    words = iter([shown(value) for value in used])
    filled = _PRINTF.sub(lambda conversion: next(words, conversion[0]) if conversion[1] else "%", phrase)
    quote = filled[:1]
    return (filled[1:].partition(quote)[0] if quote in {"'", '"'} else filled) or "empty"


# Handlers.


def _value_name(handler: Node) -> tuple[str, str]:
    """Returns the type and the name of the value that a handler takes besides `params`; empty if it takes none."""
    given = [*cpp_source.descendants(handler, "parameter_declaration", "compound_statement")][:-1]
    if len(given) < 2:  # noqa: PLR2004  # `params`, and a value
        return "", ""
    return part(given[1], "type"), next((code(node) for node in every(given[1], "identifier")), "")


def _parameter(handler: Node, scope: Scope) -> tuple[tuple[str, ...], Value]:
    """Returns the path of the one parameter that a handler sets, and its initial value; empty unless it sets just one.

    A flag that sets one of several values, such as one mode of three, does not count, nor does a handler that takes a
    value and only sets a flag.
    """
    kind, name = _value_name(handler)
    set_to: dict[tuple[str, ...], set[str]] = {}
    for node in cpp_source.descendants(handler, "assignment_expression", "call_expression"):
        target, value = node.children[0], part(node, "right")
        if node.type == "call_expression":
            is_list = part(target, "field") in _APPENDS
            target, value = (target.children[0], name) if is_list else (node, "")
        if part(node, "operator") in {"", "="} and (path := cpp_source.parameter(target)):
            set_to.setdefault(path, set()).add(value)
    if len(set_to) != 1:
        return (), ""
    ((path, to),) = set_to.items()
    plain = {"": {"true", "false"}, "bool": {name, f"!{name}"}}.get(kind)
    if not to <= plain if plain else to in ({"true"}, {"false"}):
        return (), ""
    initial, field = scope.initial(path), scope.field(path)
    if isinstance(initial, bool) and to == {f"!{name}"}:
        initial = not initial
    return path, cpp_source.spelled(initial, field.type) if field else initial


def _values(handler: Node, path: tuple[str, ...], scope: Scope) -> tuple[str, ...]:
    """Returns the words that a handler of text compares, or looks up in a table or an enum."""
    kind, name = _value_name(handler)
    if kind != "std::string":
        return ()
    words: list[str] = []
    tables: list[Field] = []
    for node in every(handler, "binary_expression", "call_expression"):
        function, sides = part(node, "function"), children(node)
        if function in _ON_OFF:
            words.append(_ON_OFF[function])
        elif function in scope.functions:
            looked_at = map(code, every(scope.functions[function], "identifier"))
            tables += [scope.tables[name] for name in looked_at if name in scope.tables]
        elif part(node, "operator") == "==" and name in map(code, sides):
            words += [text for side in sides if isinstance(text := value_of(side, scope), str) and text]
    field = scope.field(path)
    if not words and tables and tables[0].initializer:
        constants = value_of(tables[0].initializer, scope)
        words = [shown(cpp_source.spelled(constant, tables[0].type)) for constant in _list(constants, ARGUMENTS)]
    elif not words and field:
        words = [constant for constant in scope.enums.get(field.type, ()) if not constant.endswith("_COUNT")]
    return tuple(dict.fromkeys(words))
