"""What upstream changed of llama-server's arguments and variables between two trees of llama.cpp."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from base_images.errors import SourceError
from base_images.recipes import consumer, server_arguments
from base_images.recipes.server_arguments import Argument

_SAME_WORDS = {"true": "enabled", "false": "disabled"}
"""What a help text says of the same value in other words."""


class Kind(StrEnum):
    """What happened to an argument or a variable."""

    GONE = "gone"
    CHANGED = "changed"
    APPEARED = "appeared"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One thing that upstream changed.

    Attributes:
        kind: what happened.
        names: the spellings and variables that are gone or appeared; of a changed argument the one that names it.
        detail: what changed, and what else is to be known; may be empty.
        used: whether the consumer uses one of them, or a changed argument by any of its names.
    """

    kind: Kind
    names: tuple[str, ...]
    detail: str
    used: bool

    def __str__(self) -> str:
        kind = [] if self.kind is Kind.CHANGED else [self.kind.value]
        return f"{', '.join(self.names)}: {'; '.join((*kind, *filter(None, [self.detail])))}"

    def as_dict(self) -> dict[str, Any]:
        """Returns the change as JSON has it."""
        return {"change": self.kind.value, "names": list(self.names), "detail": self.detail, "used": self.used}


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a tree of llama.cpp, called `name`, has of `server_arguments.FILES`: their texts by their path."""

    name: str
    texts: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What changed between two trees.

    Attributes:
        breaks: those of the consumer's arguments and variables that are gone.
        not_compared: the sentence that says why the trees cannot be compared; empty where they are.
    """

    changes: tuple[Change, ...] = ()
    breaks: tuple[str, ...] = ()
    not_compared: str = ""

    @property
    def warning(self) -> str:
        """What a pin on the newer tree means for the consumer, a sentence; empty where it takes all that it did."""
        if not self.breaks:
            return ""
        names = ", ".join(f"`{name}`" for name in self.breaks)
        return (
            f"{consumer.NAME} passes {names}, which llama-server refuses now: its servers do not start, contract and "
            "smoke test fail, and no image of this becomes latest."
        )

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as JSON has it."""
        changes = [one.as_dict() for one in self.changes]
        return {"changes": changes, "breaks": list(self.breaks), "not_compared": self.not_compared}


def compare(before: Source, after: Source, used: Collection[str] = ()) -> Report:
    """Returns what upstream changed from one tree to another; a tree that cannot be read is said, and is no error.

    Args:
        before: the older tree.
        after: the newer one.
        used: the names and variables that the consumer uses.
    """
    try:
        found = changes(_read(before), _read(after), used)
    except SourceError as error:
        return Report(not_compared=f"llama-server's arguments cannot be compared: {error}")
    breaks = tuple(name for one in found if one.kind is Kind.GONE for name in one.names if name in used)
    return Report(changes=found, breaks=breaks)


def _read(source: Source) -> tuple[Argument, ...]:
    for path in server_arguments.FILES:
        if path not in source.texts:
            raise SourceError(f"{source.name} has no {path}.")
    try:
        return server_arguments.read(*(source.texts[path] for path in server_arguments.FILES))
    except SourceError as error:
        raise SourceError(f"of {source.name} {error}") from error


def changes(before: Iterable[Argument], after: Iterable[Argument], used: Collection[str] = ()) -> tuple[Change, ...]:
    """Returns what appeared, is gone, or takes other values or has another default; first what is used.

    An argument that has any name or variable in both stayed, and of it each that appeared or is gone counts, or that is
    another argument's now. One that llama-server knows but always refuses is gone. Values count where the words that
    are allowed differ or where it takes another number of values, whatever the hint calls them: `MODE` for `{a,b}` is
    no change. A default counts where both help texts say one, a phrase too, and otherwise where the parameter starts as
    something else. Other words of a help text do not count, nor do order and formatting.

    Args:
        before: what `server_arguments.read` returned of the older tree.
        after: of the newer one.
        used: the names and variables that the consumer uses.
    """
    before, after = tuple(before), tuple(after)
    old, new = ([one for one in arguments if not one.refused] for arguments in (before, after))
    refused = {thing: one.refused for one in after if one.refused for thing in one.things}
    in_old, in_new = _by_thing(old), _by_thing(new)
    pairs: list[tuple[Argument, Argument]] = []
    found: list[Change] = []
    for one in old:
        gone = tuple(thing for thing in one.things if thing not in in_new)
        why = next((f"llama-server refuses it: {refused[thing]}" for thing in gone if thing in refused), "")
        if stayed := _nearest(one, in_new):
            pairs.append((one, stayed))
            why = why or (f"{_main(stayed)} stays" if _main(stayed) in in_old else f"now {_main(stayed)}")
        found += _change(Kind.GONE, gone, why, used)
    for one in new:
        appeared = tuple(thing for thing in one.things if thing not in in_old)
        detail = _described(one)
        if was := _nearest(one, in_old):
            pairs.append((was, one))
            detail = f"formerly {_main(was)}" if _main(one) in appeared else f"of {_main(one)}"
        found += _change(Kind.APPEARED, appeared, detail, used)
    for one in new:
        for thing in one.things:
            if (owners := in_old.get(thing)) and not any((owner, one) in pairs for owner in owners):
                found += _change(Kind.CHANGED, (thing,), f"of {_main(owners[0])} -> of {_main(one)}", used)
    for first, second in pairs:
        detail = "; ".join(_differences(first, second))
        names = (_main(second),) if detail else ()
        found += _change(Kind.CHANGED, names, detail, {*first.things, *second.things} & {*used} and names)
    order = list(Kind)
    return tuple(
        sorted(dict.fromkeys(found), key=lambda one: (not one.used, order.index(one.kind), one.names[0].lstrip("-")))
    )


def _change(kind: Kind, names: tuple[str, ...], detail: str, used: Collection[str]) -> list[Change]:
    return [Change(kind=kind, names=names, detail=detail, used=not {*names}.isdisjoint(used))] if names else []


def _by_thing(arguments: Iterable[Argument]) -> dict[str, list[Argument]]:
    found: dict[str, list[Argument]] = {}
    for one in arguments:
        for thing in one.things:
            found.setdefault(thing, []).append(one)
    return found


def _nearest(argument: Argument, others: Mapping[str, list[Argument]]) -> Argument | None:
    """Returns the argument of the other tree that has most of its names and variables."""
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
            ", ".join(value for value in one.values if value not in other.values)
            for one, other in ((before, after), (after, before))
        )
        yield "values " + ", ".join(filter(None, (lost and f"no longer {lost}", won and f"now also {won}")))
    elif {*before.choices} != {*after.choices}:
        yield f"values that its hint lists {' '.join(before.hints)} -> {' '.join(after.hints)}"
    said = [_SAME_WORDS.get(one.default, one.default) for one in (before, after)]
    if all(said) and said[0] != said[1]:
        yield f"default {before.default} -> {after.default}"
    elif before.parameter == after.parameter and before.initial != after.initial:
        though = f", though its help says {after.default}" if after.default else ""
        yield f"default {before.initial} -> {after.initial}{though}"
    if before.condition != after.condition:
        yield f"there {before.is_there} -> {after.is_there}"
