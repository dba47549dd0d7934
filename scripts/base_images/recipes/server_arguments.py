"""What llama-server takes from its command line and environment, read from llama.cpp's source by a real C++ grammar.

`common_params_parser_init` of `common/arg.cpp` adds one `common_arg` per argument, and `common/common.h` has what the
parameters start as. What neither file says is left as the source has it, such as the name of a constant, and an
argument that is not understood is an error: none is left out in silence.
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
"""The two files of llama.cpp that say it."""

_INIT = "common_params_parser_init"
_SERVER = Code(text="LLAMA_EXAMPLE_SERVER")
_COMMON = Code(text="LLAMA_EXAMPLE_COMMON")

_FROM_ENVIRONMENT = "common_arg::get_value_from_env"
_NEGATION = ("LLAMA_ARG_", "LLAMA_ARG_NO_")
"""What that function replaces in a variable's name, for an argument that can be turned off."""

_ON_OFF = {"is_truthy": "on", "is_falsey": "off", "is_autoy": "auto"}
"""Functions of arg.cpp that take several spellings of a word, and the one that help texts use."""

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
        environment: its variables: that of `set_env`, and the LLAMA_ARG_NO_ form where it can be turned off.
        hints: what its help calls its values, such as `N` or `{none,layer,row}`; empty where it takes none.
        values: the words that its handler knows, or the constants of the table or the enum that it looks them up in;
            else the words that its hint or its help text lists. It may take others beside them, such as a number.
        default: what its help says after `default:`, with `params.x` replaced by what it starts as; empty where the
            help does not say it, or says it by a function of another file.
        parameter: the one parameter that it sets, such as `load_mode`; empty where there is not just one.
        initial: what that starts as; empty where there is none.
        condition: what the source makes it depend on, where that cannot be told from the source.
        refused: what llama-server says instead, if all that it does with it is to end with an error.
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
        """All that a person can type for it: every spelling and every variable."""
        return (*self.names, *self.negated, *self.environment)

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that its hints list, as `[on|off]` and `{none,layer,row}` do; `N` and `FILE` list none."""
        return _choices(self.hints)

    @property
    def takes(self) -> str:
        """What its value is, in words."""
        words = f" ({', '.join(self.values)})" if self.values and not self.choices else ""
        return " ".join(self.hints) + words if self.hints else "no value"

    @property
    def is_there(self) -> str:
        """When llama-server takes it, in words."""
        return f"only if {self.condition}" if self.condition else "always"


def read(arg_cpp: str, common_h: str) -> tuple[Argument, ...]:
    """Returns what llama-server takes, in the order of the source, with what it still knows but refuses.

    The rule is that of `add_opt` there: an argument is for llama-server if its examples have LLAMA_EXAMPLE_SERVER or
    LLAMA_EXAMPLE_COMMON and its excludes do not have LLAMA_EXAMPLE_SERVER. Of an `if` or `#if` whose condition depends
    on the build or the machine both branches count, and the argument has the condition.

    Args:
        arg_cpp: `common/arg.cpp` of llama.cpp.
        common_h: `common/common.h` of the same commit.

    Raises:
        SourceError: the text is not what llama.cpp's was so far; it says which line.
    """
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
    environment = scope.functions.get(_FROM_ENVIRONMENT)
    negates = environment is not None and f'"{_NEGATION[1]}"' in code(environment)
    added = [_argument(call, condition, scope, negates=negates) for call, condition in _added(body, scope)]
    taken = tuple(argument for argument in added if argument)
    if not taken:
        raise SourceError(f"{ARGUMENTS} adds no argument in {_INIT}, where they all were so far.")
    return taken


def _added(node: Node, scope: Scope, condition: str = "") -> Iterator[tuple[Node, str]]:
    """Yields the calls of add_opt that llama-server reaches or may reach, with the condition; assignments are noted."""
    branches = [(child, condition) for child in children(node)]
    match node.type:
        case "lambda_expression":
            return
        case "call_expression" if part(node, "function") == "add_opt":
            yield node, condition
            return
        case "assignment_expression" if not condition:
            scope.assign(node)
        case "if_statement" | "preproc_if" | "preproc_ifdef" | "preproc_elif":
            alternative, holds = node.child_by_field_name("alternative"), scope.holds(node)
            clause = node.child_by_field_name("condition") or node.child_by_field_name("name") or node
            says = part(clause, "value") or code(clause)
            met, unmet = (" and ".join(filter(None, (condition, one))) for one in (says, f"not ({says})"))
            if holds is None:
                branches = [(child, unmet if child == alternative else met) for child, _ in branches]
            else:
                branches = [(child, condition) for child, _ in branches if (child == alternative) is not holds]
        case _:
            pass
    for child, depends in branches:
        yield from _added(child, scope, depends)


def _argument(call: Node, condition: str, scope: Scope, *, negates: bool) -> Argument | None:
    """Returns the argument that a call of add_opt adds; None if it is not one of llama-server's."""
    where = f"{ARGUMENTS} line {call.start_point.row + 1}"
    setters: dict[str, tuple[Value, ...]] = {}
    made = (_given(call) or [call])[0]
    while (chain := made.child_by_field_name("function")) and chain.type == "field_expression":
        setters[part(chain, "field")] = tuple(value_of(one, scope) for one in _given(made))
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
    names, *between = (value_of(one, scope) for one in given[:-2])
    negated = between.pop(0) if between and isinstance(between[0], tuple) else ()
    variables = _texts(setters.get("set_env", ()), where)
    if negated and negates:
        variables = tuple(dict.fromkeys((*variables, *(one.replace(*_NEGATION) for one in variables))))
    handler, (text, values) = given[-1], _help(given[-2], scope)
    path, initial = _parameter(handler, scope)
    hints = tuple(map(shown, between))
    refusals = [_given(one) for one in every(handler, "call_expression") if part(one, "function") == "arg_removed"]
    return Argument(
        names=_texts(names, where),
        negated=_texts(negated, where),
        environment=variables,
        hints=hints,
        values=hints and (_values(handler, path, scope) or _choices(hints) or _listed(text)),
        default=stated(text, values),
        parameter=".".join(path),
        initial=shown(initial) if path else "",
        condition=condition,
        refused=shown(tuple(value_of(one, scope) for given in refusals for one in given)) if refusals else "",
    )


def _given(call: Node) -> list[Node]:
    return children(call.child_by_field_name("arguments"))


def _list(value: Value, where: str) -> tuple[Value, ...]:
    if not isinstance(value, tuple):
        raise SourceError(f"{where}: there is {shown(value)} where there were lists so far.")
    return value


def _texts(value: Value, where: str) -> tuple[str, ...]:
    texts = tuple(one for one in _list(value, where) if isinstance(one, str))
    if texts != value:
        raise SourceError(f"{where}: not every name of {shown(value)} is a literal.")
    return texts


def _choices(hints: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(one for hint in hints if _CHOICES.fullmatch(hint) for one in re.findall(_WORD, hint))


def _listed(text: str) -> tuple[str, ...]:
    """Returns the values that a help text lists, as in `available tools: a, b`."""
    return tuple(one for listed in _LISTED.findall(text) for one in listed.split(", "))


# Help texts.


def _help(node: Node, scope: Scope) -> tuple[str, tuple[Value, ...]]:
    """Returns a help text as printf takes it: its format and its values."""
    inner = children(node)
    match node.type:
        case "conditional_expression" if (holds := scope.holds(node)) is not None:
            return _help(inner[1 if holds else 2], scope)
        case "parenthesized_expression":
            return _help(inner[0], scope)
        case "call_expression" if code(inner[0]) == "string_format":
            form, *values = _given(node)
            text = value_of(form, scope)
            return (text if isinstance(text, str) else "", tuple(value_of(one, scope) for one in values))
        case "binary_expression":
            (left, first), (right, second) = (_help(one, scope) for one in inner)
            return left + right, first + second
        case _:
            text = value_of(node, scope)
            return (text.replace("%", "%%") if isinstance(text, str) else "", ())


def stated(text: str, values: tuple[Value, ...] = ()) -> str:
    """Returns what a help text says after its first `default:`, without quotes; empty where it says nothing.

    It ends at a comma, a semicolon, a closing bracket, the end of a sentence or line, and where an explanation follows,
    as in `0 = unlimited`. A value is put in afterwards, so that it may hold commas; one that cannot be worked out
    leaves the default unsaid.

    Args:
        text: the help text as printf takes it.
        values: for printf.
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
        sum(1 for one in _PRINTF.finditer(one_part) if one[1]) for one_part in (text[: found.end()], phrase)
    )
    used = values[before : before + within]
    if any(isinstance(one, Code) and not (one.is_constant or one.is_parameter) for one in used):
        return ""
    words = iter([shown(one) for one in used])
    filled = _PRINTF.sub(lambda one: next(words, one[0]) if one[1] else "%", phrase)
    quote = filled[:1]
    return (filled[1:].partition(quote)[0] if quote in {"'", '"'} else filled) or "empty"


# Handlers.


def _value_name(handler: Node) -> tuple[str, str]:
    """Returns the type and the name of what a handler is given beside the parameters; empty where that is nothing."""
    *given, _ = cpp_source.descendants(handler, "parameter_declaration", "compound_statement")
    if handler.type != "lambda_expression" or len(given) < 2:  # noqa: PLR2004  # the parameters, and a value
        return "", ""
    return part(given[1], "type"), next((code(one) for one in every(given[1], "identifier")), "")


def _parameter(handler: Node, scope: Scope) -> tuple[tuple[str, ...], Value]:
    """Returns the path of the one parameter that a handler sets, and what that starts as; empty where there is none.

    A flag that sets one of several values, such as one mode of three, is not the parameter's argument. Neither is what
    takes a value and notes only that it was there.
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
    """Returns the words that a handler of a text knows, by itself or by a table or an enum that it looks them up in."""
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
            tables += [scope.tables[one] for one in looked_at if one in scope.tables]
        elif part(node, "operator") == "==" and name in map(code, sides):
            words += [text for one in sides if isinstance(text := value_of(one, scope), str) and text]
    field = scope.field(path)
    if not words and tables and tables[0].initializer:
        constants = value_of(tables[0].initializer, scope)
        words = [shown(cpp_source.spelled(one, tables[0].type)) for one in _list(constants, ARGUMENTS)]
    elif not words and field:
        words = [one for one in scope.enums.get(field.type, ()) if not one.endswith("_COUNT")]
    return tuple(dict.fromkeys(words))
