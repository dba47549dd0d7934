"""What a version of llama.cpp means for us: a verdict with its counts, what to act on, and the rest.

Everything that is told is an `Item`: one sentence about one change, with the variants that have it. Terminal, Markdown
and JSON show the same items and the same verdict.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from base_images import variants
from base_images.recipes import argument_changes, beyond, consumer, markdown, mirror
from base_images.recipes.differences import Difference
from base_images.recipes.facts import GLOBAL, UNREADABLE, Fact
from base_images.recipes.mirror import Finding, RefsReport, Report, Status


class Kind(StrEnum):
    """What an item asks of the reader, the most urgent first."""

    BREAKS = "breaks the consumer"
    PORT = "to port"
    INFORMATION = "for information"


@dataclass(frozen=True, kw_only=True)
class Item:
    """One change.

    Attributes:
        where: the variants that have it, or another place, such as llama-server.
        text: a sentence without its full stop; names and values are between backquotes.
    """

    kind: Kind
    where: tuple[str, ...]
    text: str

    @property
    def place(self) -> str:
        """`where` as text."""
        return ", ".join(self.where)

    def as_dict(self) -> dict[str, Any]:
        """Returns the item for JSON."""
        return {"kind": self.kind.value, "where": list(self.where), "text": self.text}


@dataclass(frozen=True, kw_only=True)
class Telling:
    """The items on one version, or on the way from one to another.

    Attributes:
        subject: the version or versions, such as `b10454 → b11312`.
        intended: the number of recorded differences; they are no items.
        between: whether two versions were compared, and so what changes for the consumer.
    """

    subject: str
    items: tuple[Item, ...]
    intended: int
    between: bool

    def of(self, *kinds: Kind) -> tuple[Item, ...]:
        """Returns the items of some kinds, the most urgent first."""
        return tuple(item for kind in kinds for item in self.items if item.kind is kind)

    @property
    def verdict(self) -> str:
        """One line: what it is about, and the counts."""
        counts = {kind: len(self.of(kind)) for kind in Kind}
        breaks = "breaks" if counts[Kind.BREAKS] == 1 else "break"
        consumers = f"{counts[Kind.BREAKS]} {breaks} the consumer, " if self.between else ""
        return f"{self.subject}: {counts[Kind.PORT]} to port, {consumers}{counts[Kind.INFORMATION]} for information"

    @property
    def findings(self) -> tuple[Item, ...]:
        """What to act on, the most urgent first."""
        return self.of(Kind.BREAKS, Kind.PORT)

    @property
    def conclusion(self) -> str:
        """One line: what to do next."""
        held = (
            f"Until {consumer.NAME} passes other arguments, contract and smoke test of it fail, and no image of it "
            "becomes latest. "
        )
        if self.of(Kind.PORT):
            said = (
                "Port what is to port to dockerfiles/, or record its key, which `invoke check-upstream --all` prints, "
                f"with the reason in {mirror.DIFFERENCES}."
            )
        else:
            intended = f", {self.intended} differences are intended" if self.intended else ""
            said = f"Our recipes need no change{intended}."
        return f"{held if self.of(Kind.BREAKS) else ''}{said}"

    def as_dict(self) -> dict[str, Any]:
        """Returns the verdict, its counts and the items for JSON."""
        counts = {
            "text": self.verdict,
            "to_port": len(self.of(Kind.PORT)),
            "breaks_consumer": len(self.of(Kind.BREAKS)) if self.between else None,
            "information": len(self.of(Kind.INFORMATION)),
        }
        return {"verdict": counts, "items": [item.as_dict() for item in self.of(*Kind)]}


def tell(subject: str, result: Report, changed: RefsReport | None = None) -> Telling:
    """Returns what there is to tell.

    Args:
        subject: the version or versions.
        result: our recipes compared with the version, or the newer one.
        changed: what upstream changed between two versions.
    """
    items = [*_to_port(result, changed)]
    if changed:
        items += [*_arguments(changed.arguments), *_beyond(changed.beyond), *_changes(changed, result)]
    else:
        items += _one_sided(result)
    intended = sum(
        finding.status is Status.INTENDED for comparison in result.comparisons for finding in comparison.findings
    )
    return Telling(subject=subject, items=_joined(items), intended=intended, between=changed is not None)


def _joined(items: Iterable[Item]) -> tuple[Item, ...]:
    """Returns the items with the same sentence of several variants as one."""
    where: dict[tuple[Kind, str], list[str]] = {}
    for item in items:
        where.setdefault((item.kind, item.text), []).extend(item.where)
    return tuple(Item(kind=kind, text=text, where=tuple(dict.fromkeys(names))) for (kind, text), names in where.items())


# What our recipes need.


def _to_port(result: Report, changed: RefsReport | None) -> Iterator[Item]:
    for comparison in result.comparisons:
        name = comparison.variant
        moved = {_subject(each): each for each in changed.changes.get(name, ())} if changed else {}
        for group in _grouped([finding.difference for finding in _unexplained(comparison.findings)]):
            yield Item(
                kind=Kind.PORT, where=(name,), text=_against_ours(group, [moved.get(_subject(d)) for d in group])
            )
    for record in result.stale:
        if not _told_by_finding(record, result, ()):
            text = f"the record `{_quoted(record.key)}` matches no difference any more: remove it"
            yield Item(kind=Kind.PORT, where=record.only or (record.variant,), text=text)
    for lost in result.lost:
        if names := tuple(name for name in lost.variants if not _told_by_finding(lost.record, result, (name,))):
            text = (
                f"the recorded difference `{_quoted(lost.record.key)}` is gone here and not in the other variants: see "
                "what upstream changed here, and let the record name its variants"
            )
            yield Item(kind=Kind.PORT, where=names, text=text)
    if result.gone:
        yield Item(kind=Kind.PORT, where=result.gone, text="upstream has no file for it any more")


def _unexplained(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.status is not Status.INTENDED]


def _told_by_finding(record: mirror.Record, result: Report, names: Sequence[str]) -> bool:
    """Whether an item tells of a record's subject already, in each of the variants that have one."""
    names = names or record.only or (() if record.variant == mirror.ALL else (record.variant,))
    subjects = {
        comparison.variant: {_subject(finding.difference) for finding in _unexplained(comparison.findings)}
        for comparison in result.comparisons
    }
    chosen = names or tuple(subjects)
    return bool(chosen) and all(any(_is_of(record, each) for each in subjects.get(name, ())) for name in chosen)


def _is_of(record: mirror.Record, subject: str) -> bool:
    rest = record.key[2:]
    return rest == subject or rest.startswith((f"{subject} = ", f"{subject}: "))


def _one_sided(result: Report) -> Iterator[Item]:
    if result.upstream_only:
        yield Item(kind=Kind.INFORMATION, where=result.upstream_only, text="upstream has it, we do not ship it")
    if result.without_recipe:
        yield Item(kind=Kind.INFORMATION, where=result.without_recipe, text="no recipe here yet")


# What upstream changed.


def _changes(changed: RefsReport, result: Report) -> Iterator[Item]:
    """Yields what upstream changed, without what is to port."""
    shipped = {variant.name for variant in variants.VARIANTS}
    told = {
        (comparison.variant, _subject(finding.difference))
        for comparison in result.comparisons
        for finding in _unexplained(comparison.findings)
    }
    # What is told of a variant of ours is not told again of one that we do not ship.
    shared = {each.key for name, found in changed.changes.items() for each in found if (name, _subject(each)) in told}
    for name, found in changed.changes.items():
        new = [each for each in found if name in shipped or each.key not in shared]
        readable = [each for each in new if UNREADABLE not in {_some(each).kind, (each.before or _some(each)).kind}]
        for group in _grouped(readable):
            lost = [each.record for each in result.lost if name in each.variants]
            lost += [record for record in result.stale if record.covers(name)]
            in_record = any(_is_of(record, _subject(each)) for record in lost for each in group)
            if not in_record and not any((name, _subject(each)) in told for each in group):
                yield Item(kind=Kind.INFORMATION, where=(_place(name, shipped),), text=_between_refs(group))
    compared = {comparison.variant for comparison in result.comparisons}
    for name, sentences in changed.unreadable.items():
        for sentence in sentences if name not in compared else ():
            text = f"unreadable: {_quoted(sentence.rstrip('.'))}"
            yield Item(kind=Kind.INFORMATION, where=(_place(name, shipped),), text=text)
    for names, text in ((changed.appeared, "new at upstream"), (changed.disappeared, "gone at upstream")):
        for name in names:
            if name not in result.gone:
                yield Item(kind=Kind.INFORMATION, where=(_place(name, shipped),), text=text)


def _beyond(changes: Iterable[beyond.Change]) -> Iterator[Item]:
    """Yields what upstream changed outside of its Dockerfiles."""
    for change in changes:
        values = (f"`{_quoted(value)}`" if value else "none" for value in (change.before, change.after))
        text = f"{change.area}: `{_quoted(change.what)}`: {' → '.join(values)}"
        yield Item(kind=Kind.INFORMATION, where=change.variants or ("no variant of ours",), text=text)


def _place(name: str, shipped: Iterable[str]) -> str:
    return name if name in shipped else f"{name} (not shipped)"


def _arguments(report: argument_changes.Report | None) -> Iterator[Item]:
    if report is None:
        return
    where = ("llama-server",)
    if report.not_compared:
        yield Item(kind=Kind.INFORMATION, where=where, text=report.not_compared.rstrip("."))
    for change in report.changes:
        names, detail = ", ".join(f"`{name}`" for name in change.names), f": {change.detail}" if change.detail else ""
        what = "" if change.kind is argument_changes.Kind.CHANGED else f" {change.kind.value}"
        passed = [f"`{_quoted(words)}`" for words in change.breaks]
        if passed:
            text = f"{names}{what}{detail}; {consumer.NAME} passes {', '.join(passed)}: its servers do not start"
            yield Item(kind=Kind.BREAKS, where=where, text=text)
        else:
            by = ""
            if change.used:
                only_default = change.detail.startswith("default ")
                by = (
                    f" (no change for {consumer.NAME}, which passes it)"
                    if only_default
                    else f" ({consumer.NAME} uses it)"
                )
            yield Item(kind=Kind.INFORMATION, where=where, text=f"{names}{what}{by}{detail}")


# Words for differences.


def _some(difference: Difference) -> Fact:
    fact = difference.after or difference.before
    assert fact  # noqa: S101 - a difference has one of the two
    return fact


def _subject(difference: Difference) -> str:
    return _some(difference).subject


def _quoted(text: str) -> str:
    return text.replace("`", "'")


def _value(fact: Fact | None) -> str:
    return f"`{_quoted(fact.value)}`" if fact and fact.value else "no value"


_BY = re.compile(r" by ([\w ]+)$")


def _image(fact: Fact | None) -> str:
    """Returns the image of a FROM, without the ARGs that it is made of."""
    return _BY.sub("", fact.value) if fact else ""


def _arguments_of(difference: Difference) -> set[str]:
    """Returns the ARGs that the base images on both sides are made of."""
    found = (_BY.search(fact.value) for fact in (difference.before, difference.after) if fact)
    return {name for match in found if match for name in match[1].split()}


def _grouped(found: Sequence[Difference]) -> list[list[Difference]]:
    """Returns the differences that are told together: base images that share an ARG or an image, with their ARGs."""
    groups: list[list[Difference]] = []
    for each in (each for each in found if _is_base(each)):
        own = next((group for group in groups if any(_same_base(each, other) for other in group)), None)
        groups.append([each]) if own is None else own.append(each)
    rest = []
    for each in (each for each in found if not _is_base(each)):
        own = next((group for group in groups if _chooses_base(each, group)), None)
        rest.append([each]) if own is None else own.append(each)
    return groups + rest


def _is_base(difference: Difference) -> bool:
    return bool(difference.before and difference.after) and _some(difference).kind == "from"


def _same_base(one: Difference, other: Difference) -> bool:
    images = [(_image(each.before), _image(each.after)) for each in (one, other)]
    return images[0] == images[1] or not _arguments_of(one).isdisjoint(_arguments_of(other))


def _chooses_base(difference: Difference, group: Iterable[Difference]) -> bool:
    """Whether an ARG chooses a base of a group: it is part of its name, or has the name with ARGs in it."""
    fact = _some(difference)
    if fact.stage != GLOBAL or fact.kind != "arg":
        return False
    bases = [each for each in group if _is_base(each)]
    images = {_image(side).removeprefix("docker.io/") for each in bases for side in (each.before, each.after)}
    patterns = [
        re.sub(r"\\\$\\\{\w+\\\}", "[^/]+", re.escape(side.value.removeprefix("docker.io/")))
        for side in (difference.before, difference.after)
        if side and ":" in side.value
    ]
    return any(fact.name in _arguments_of(each) for each in bases) or any(
        re.fullmatch(pattern, image) for pattern in patterns for image in images
    )


def _bases(group: Sequence[Difference], words: str) -> str:
    """Returns the sentence on base images; `words` has places for their images before and after."""
    stages: dict[tuple[str, str], list[str]] = {}
    for each in group:
        if _is_base(each):
            stages.setdefault((_quoted(_image(each.before)), _quoted(_image(each.after))), []).append(
                f"`{_some(each).stage}`"
            )
    said = [f"of {', '.join(names)}: {words.format(*images)}" for images, names in stages.items()]
    used = sorted({name for each in group for name in _arguments_of(each)})
    used += [_some(each).name for each in group if not _is_base(each) and _some(each).name not in used]
    by = f" (by ARG {', '.join(used)})" if used else ""
    return f"base image {'; '.join(said)}{by}"


def _against_ours(group: Sequence[Difference], moved: Sequence[Difference | None]) -> str:
    """Returns the sentence on a difference between upstream, which is before, and us."""
    if _is_base(group[0]):
        return _bases(group, "upstream has `{}`, ours is `{}`")
    [difference], [change] = group, moved
    before, after = difference.before, difference.after
    if before and before.kind == UNREADABLE:
        return f"unreadable: {_quoted(before.value.rstrip('.'))}"
    subject = f"`{_quoted(_subject(difference))}`"
    if before and after:
        was = f"had {_value(change.before)} and now has" if change and change.before else "has"
        return f"{subject}: upstream {was} {_value(before)}, ours has {_value(after)}"
    if before:
        is_new = change and change.before is None
        return f"`{_quoted(str(before))}`: {'new at upstream' if is_new else 'upstream has it'}, ours lacks it"
    is_gone = change and change.after is None
    return f"`{_quoted(str(after))}`: {'gone at upstream' if is_gone else 'upstream lacks it'}, ours has it"


def _between_refs(group: Sequence[Difference]) -> str:
    """Returns the sentence on a change by upstream."""
    if _is_base(group[0]):
        return _bases(group, "`{}` → `{}`")
    [difference] = group
    if difference.before and difference.after:
        subject = f"`{_quoted(_subject(difference))}`"
        return f"{subject}: {_value(difference.before)} → {_value(difference.after)}"
    return f"`{_quoted(str(_some(difference)))}`: {'gone' if difference.before else 'new'}"


# Markdown.


def as_markdown(telling: Telling, actions: Iterable[str] = ()) -> str:
    """Returns the text of a pull request: the verdict, what to act on, and the rest folded.

    Args:
        telling: what there is to tell.
        actions: what there is to do beside it, as Markdown.
    """
    lines = [f"**{markdown.text(telling.verdict)}**", ""]
    lines += _section("Breaks the consumer", telling.of(Kind.BREAKS))
    lines += _section("To port", telling.of(Kind.PORT))
    lines += [markdown.text(telling.conclusion), ""]
    lines += [line for action in actions for line in (action, "")]
    if rest := telling.of(Kind.INFORMATION):
        lines += [f"<details><summary>{len(rest)} for information</summary>", "", *_list(rest), "", "</details>", ""]
    return "\n".join(lines)


def _section(title: str, items: Sequence[Item]) -> list[str]:
    return [f"## {title}", "", *_list(items), ""] if items else []


def _list(items: Sequence[Item]) -> list[str]:
    return [f"- **{markdown.text(item.place)}**: {markdown.text(item.text, in_table=False)}" for item in items]
