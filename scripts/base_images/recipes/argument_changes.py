"""Compares llama-server's arguments and variables between two trees of llama.cpp."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from base_images.errors import SourceError
from base_images.recipes import server_arguments
from base_images.recipes.server_arguments import Argument

_SAME_WORDS = {"true": "enabled", "false": "disabled"}
"""Other words of help texts for the same value."""


class Kind(StrEnum):
    """The kind of change of an argument or a variable."""

    GONE = "gone"
    CHANGED = "changed"
    APPEARED = "appeared"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change by upstream.

    Attributes:
        kind: the kind of change.
        names: the spellings and variables that are gone or appeared; for a changed argument its main name.
        detail: the change itself and its context; may be empty.
        used: whether the consumer uses one of `names`, or any name of a changed argument.
        breaks: what the consumer passes and llama-server refuses since, such as `--split-mode row`.
    """

    kind: Kind
    names: tuple[str, ...]
    detail: str
    used: bool
    breaks: tuple[str, ...] = ()

    def __str__(self) -> str:
        kind = [] if self.kind is Kind.CHANGED else [self.kind.value]
        return f"{', '.join(self.names)}: {'; '.join((*kind, *filter(None, [self.detail])))}"

    def as_dict(self) -> dict[str, Any]:
        """Returns the change for JSON."""
        return {"change": self.kind.value, "names": list(self.names), "detail": self.detail, "used": self.used}


@dataclass(frozen=True, kw_only=True)
class Source:
    """The texts of `server_arguments.FILES` by path in a tree of llama.cpp, as far as it has them."""

    name: str
    texts: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The changes between two trees.

    Attributes:
        breaks: the consumer's arguments and variables that are gone, or refuse what he passes to them.
        not_compared: a sentence that says why the trees cannot be compared; empty if they were.
    """

    changes: tuple[Change, ...] = ()
    breaks: tuple[str, ...] = ()
    not_compared: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Returns the report for JSON."""
        changes = [change.as_dict() for change in self.changes]
        return {"changes": changes, "breaks": list(self.breaks), "not_compared": self.not_compared}


Used = Mapping[str, Collection[tuple[str, ...]]]
"""The consumer's arguments and variables, each with the values that he passes to it: one tuple for each use."""

_NOTHING: Used = {}


def compare(before: Source, after: Source, used: Used = _NOTHING) -> Report:
    """Compares two trees; a tree that cannot be read is reported in `not_compared`, not raised.

    Args:
        before: the older tree.
        after: the newer one.
        used: the arguments and variables that the consumer uses.
    """
    try:
        found = changes(_read(before), _read(after), used)
    except SourceError as error:
        return Report(not_compared=f"llama-server's arguments cannot be compared: {error}")
    breaks = tuple(passed.split()[0] for change in found for passed in change.breaks)
    return Report(changes=found, breaks=breaks)


def _read(source: Source) -> tuple[Argument, ...]:
    for path in server_arguments.FILES:
        if path not in source.texts:
            raise SourceError(f"{source.name} has no {path}.")
    try:
        return server_arguments.read(*(source.texts[path] for path in server_arguments.FILES))
    except SourceError as error:
        raise SourceError(f"of {source.name} {error}") from error


def changes(before: Iterable[Argument], after: Iterable[Argument], used: Used = _NOTHING) -> tuple[Change, ...]:
    """Returns the arguments that appeared, are gone, or changed their values or default; those in `used` come first.

    - An argument with any name or variable in both trees stayed; its names that appeared, are gone or moved to another
      argument are changes. An argument that llama-server knows but always refuses is gone.
    - Values changed if the allowed words or the number of values differ. The hint alone is no change, such as `MODE`
      for `{a,b}`.
    - Defaults are compared as both help texts state them, else by the initial value of the parameter. Other words of
      a help text, order and formatting are ignored.

    Args:
        before: the result of `server_arguments.read` for the older tree.
        after: the same for the newer tree.
        used: the arguments and variables that the consumer uses.
    """
    before, after = tuple(before), tuple(after)
    old, new = ([argument for argument in arguments if not argument.refused] for arguments in (before, after))
    refused = {thing: argument.refused for argument in after if argument.refused for thing in argument.things}
    in_old, in_new = _by_thing(old), _by_thing(new)
    pairs: list[tuple[Argument, Argument]] = []
    found: list[Change] = []
    for argument in old:
        gone = tuple(thing for thing in argument.things if thing not in in_new)
        why = next((f"llama-server refuses it: {refused[thing]}" for thing in gone if thing in refused), "")
        if stayed := _nearest(argument, in_new):
            pairs.append((argument, stayed))
            why = why or (f"{_main(stayed)} stays" if _main(stayed) in in_old else f"now {_main(stayed)}")
        found += _change(Kind.GONE, gone, why, used)
    for argument in new:
        appeared = tuple(thing for thing in argument.things if thing not in in_old)
        detail = _described(argument)
        if was := _nearest(argument, in_old):
            pairs.append((was, argument))
            detail = f"formerly {_main(was)}" if _main(argument) in appeared else f"of {_main(argument)}"
        found += _change(Kind.APPEARED, appeared, detail, used)
    for argument in new:
        for thing in argument.things:
            if (owners := in_old.get(thing)) and not any((owner, argument) in pairs for owner in owners):
                found += _change(Kind.CHANGED, (thing,), f"of {_main(owners[0])} -> of {_main(argument)}", used)
    for first, second in pairs:
        detail = "; ".join(_differences(first, second))
        names = (_main(second),) if detail else ()
        if names:
            is_used = not used.keys().isdisjoint({*first.things, *second.things})
            refused_now = tuple(_refused(first, second, used))
            found.append(Change(kind=Kind.CHANGED, names=names, detail=detail, used=is_used, breaks=refused_now))
    order = list(Kind)
    found = list(dict.fromkeys(found))
    found.sort(key=lambda change: (not change.used, order.index(change.kind), change.names[0].lstrip("-")))
    return tuple(found)


def _change(kind: Kind, names: tuple[str, ...], detail: str, used: Used) -> list[Change]:
    passed = tuple(name for name in names if name in used)
    breaks = passed if kind is Kind.GONE else ()
    return [Change(kind=kind, names=names, detail=detail, used=bool(passed), breaks=breaks)] if names else []


def _refused(before: Argument, after: Argument, used: Used) -> Iterator[str]:
    """Yields what the consumer passes of an argument, and llama-server took before and takes no more."""
    for name in after.things:
        for values in used.get(name, ()) if name in before.things else ():
            fitted, fits = (len(values) == len(argument.hints) for argument in (before, after))
            lost = any(value in before.values and value not in after.values for value in values if after.values)
            if fitted and (not fits or lost):
                yield " ".join((name, *values))


def _by_thing(arguments: Iterable[Argument]) -> dict[str, list[Argument]]:
    found: dict[str, list[Argument]] = {}
    for argument in arguments:
        for thing in argument.things:
            found.setdefault(thing, []).append(argument)
    return found


def _nearest(argument: Argument, others: Mapping[str, list[Argument]]) -> Argument | None:
    """Returns the argument of the other tree that shares most names and variables; None if none does."""
    counted = Counter(other for thing in argument.things for other in others.get(thing, ()))

    def likeness(other: Argument) -> tuple[int, bool, bool]:
        return counted[other], _main(other) == _main(argument), other.condition == argument.condition

    return max(counted, key=likeness, default=None)


def _main(argument: Argument) -> str:
    return next((name for name in argument.names if name.startswith("--")), argument.names[0])


def _described(argument: Argument) -> str:
    says_default = argument.default and (argument.hints or argument.negated)
    default = [f"default {argument.default}"] if says_default else []
    return "; ".join([f"takes {argument.takes}", *default, *([argument.is_there] if argument.condition else [])])


def _differences(before: Argument, after: Argument) -> Iterator[str]:
    if len(before.hints) != len(after.hints):
        yield f"takes {before.takes} -> {after.takes}"
    elif {*before.values} != {*after.values}:
        lost, won = (
            ", ".join(value for value in argument.values if value not in other.values)
            for argument, other in ((before, after), (after, before))
        )
        yield "values " + ", ".join(filter(None, (lost and f"no longer {lost}", won and f"now also {won}")))
    elif {*before.choices} != {*after.choices}:
        yield f"values that its hint lists {' '.join(before.hints)} -> {' '.join(after.hints)}"
    defaults = [_SAME_WORDS.get(argument.default, argument.default) for argument in (before, after)]
    if all(defaults) and defaults[0] != defaults[1]:
        yield f"default {before.default} -> {after.default}"
    elif before.parameter == after.parameter and before.initial != after.initial:
        though = f", though its help says {after.default}" if after.default else ""
        yield f"default {before.initial} -> {after.initial}{though}"
    if before.condition != after.condition:
        yield f"there {before.is_there} -> {after.is_there}"
