"""Judges how our recipes differ from upstream's `.devops/<variant>.Dockerfile`, by the recorded reasons for it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

from base_images import settings, variants
from base_images.adapters import repository
from base_images.errors import SourceError, UsageError
from base_images.recipes import argument_changes, beyond, server_arguments, upstream_server
from base_images.recipes.differences import (
    SERVER,
    Difference,
    differences,
    is_in,
    is_unreadable,
    our_facts,
    renaming,
    unread_stages,
    upstream_facts,
)
from base_images.recipes.differences import following as following_stages
from base_images.recipes.facts import Fact
from base_images.recipes.instructions import read_text

DIFFERENCES = "dockerfiles/differences.toml"
"""The records of intended differences, relative to the checkout."""

ALL = "all"
"""In `DIFFERENCES` in place of a variant's name: the record is for every variant, or for those that it names."""

UPSTREAM_DIRECTORY = ".devops"
_SUFFIX = ".Dockerfile"


class Status(StrEnum):
    """The judgement of a difference between upstream and us."""

    INTENDED = "intended"
    NOT_PORTED = "not ported"
    NOT_INTENDED = "not intended"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A judged difference; `reason` is empty unless it is intended."""

    difference: Difference
    status: Status
    reason: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """An intended difference of `DIFFERENCES`.

    Attributes:
        variant: the variant that it is for, or `ALL`.
        only: the variants that a record for `ALL` is for; empty means every variant.
    """

    variant: str
    key: str
    reason: str
    only: tuple[str, ...] = ()

    def covers(self, variant: str) -> bool:
        """Whether the variant must have the difference."""
        return variant in self.only if self.only else self.variant in {ALL, variant}

    @property
    def stage(self) -> str:
        """The stage that the difference is in."""
        return self.key[2:].partition(":")[0]


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A record that matches no difference any more in some of the variants that it is for."""

    record: Record
    variants: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One variant's two Dockerfiles; `same` counts the facts that both have with the same value."""

    variant: str
    same: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Our recipes compared with an upstream tree.

    Attributes:
        comparisons: one for each recipe that has a file at upstream.
        stale: records that match no difference.
        lost: records that match a difference in some of their variants only.
        gone: recipes without a file at upstream.
        upstream_only: upstream's variants that our table lacks.
        without_recipe: variants of our table without a recipe.
    """

    comparisons: tuple[Comparison, ...]
    stale: tuple[Record, ...]
    gone: tuple[str, ...]
    upstream_only: tuple[str, ...]
    without_recipe: tuple[str, ...]
    lost: tuple[Lost, ...] = ()

    @property
    def unreadable(self) -> bool:
        """Whether something in a file of upstream's cannot be read."""
        return any(
            finding.status is Status.UNREADABLE for comparison in self.comparisons for finding in comparison.findings
        )

    @property
    def ok(self) -> bool:
        """Whether every difference is intended, every record matches, and upstream has every variant."""
        unexplained = any(
            finding.status is not Status.INTENDED for comparison in self.comparisons for finding in comparison.findings
        )
        return not (unexplained or self.stale or self.lost or self.gone)

    def as_dict(self) -> dict[str, Any]:
        """Returns the report for JSON."""
        return {
            "ok": self.ok,
            "variants": {
                comparison.variant: {
                    "same": comparison.same,
                    "differences": [
                        {"key": finding.difference.key, "status": finding.status.value, "reason": finding.reason}
                        for finding in comparison.findings
                    ],
                }
                for comparison in self.comparisons
            },
            "stale": [asdict(record) for record in self.stale],
            "lost": [{**asdict(lost.record), "lost_in": list(lost.variants)} for lost in self.lost],
            "gone": list(self.gone),
            "upstream_only": list(self.upstream_only),
            "without_recipe": list(self.without_recipe),
        }


@dataclass(frozen=True, kw_only=True)
class RefsReport:
    """What upstream changed between two refs.

    Attributes:
        changes: the differences of every variant that both refs have; `before` is the older ref.
        appeared: variants that only the newer ref has.
        disappeared: variants that only the older ref has.
        arguments: changes of llama-server's arguments; None if they were not compared.
        unreadable: why something in a variant's file at the newer ref cannot be read, by variant.
        beyond: changes outside of the Dockerfiles.
    """

    changes: Mapping[str, tuple[Difference, ...]]
    appeared: tuple[str, ...]
    disappeared: tuple[str, ...]
    arguments: argument_changes.Report | None = None
    unreadable: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    beyond: tuple[beyond.Change, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Returns the report for JSON."""
        return {
            "variants": {name: [difference.key for difference in found] for name, found in self.changes.items()},
            "appeared": list(self.appeared),
            "disappeared": list(self.disappeared),
            **({"arguments": self.arguments.as_dict()} if self.arguments else {}),
            "beyond": [change.as_dict() for change in self.beyond],
        }


# Reading.


def upstream_texts(tree: Path, ref: str = "") -> dict[str, str]:
    """Returns upstream's Dockerfiles by variant, from a tree, or from a ref of the clone there.

    Raises:
        SourceError: there are none, or the tree is not a git clone or lacks the ref.
    """
    texts = _texts_of_ref(tree, ref) if ref else _texts_of_directory(tree)
    if not texts:
        raise SourceError(f"{tree} has no {UPSTREAM_DIRECTORY}/*{_SUFFIX}: give --source a tree of llama.cpp.")
    return texts


def argument_source(clone: Path, ref: str, name: str = "") -> argument_changes.Source:
    """Returns the files of a ref that define llama-server's arguments, as far as the ref has them.

    Args:
        clone: a clone of llama.cpp.
        ref: a tag or commit.
        name: the name of the ref in messages; default: `ref`.

    Raises:
        SourceError: there is no clone, or it lacks the ref.
    """
    texts = repository.texts(repository.source_clone(clone, ref), ref, *server_arguments.FILES)
    return argument_changes.Source(name=name or ref, texts=texts)


def our_texts(root: Path) -> dict[str, str]:
    """Returns the recipes of the checkout at `root` by variant."""
    recipes = {variant.name: root / variant.dockerfile for variant in variants.VARIANTS}
    return {name: read_text(path) for name, path in recipes.items() if path.is_file()}


def following(texts: Mapping[str, str], moved: Mapping[str, str]) -> dict[str, str]:
    """Returns upstream's Dockerfiles by the variant that they were the file of before they were renamed.

    Args:
        texts: the Dockerfiles of the newer version by variant.
        moved: the new path of each file that moved, by its old path.
    """
    names = {_variant(new): _variant(old) for old, new in moved.items() if new.endswith(_SUFFIX)}
    return {names.get(name, name): text for name, text in texts.items()}


def _variant(path: str) -> str:
    return PurePosixPath(path).name.removesuffix(_SUFFIX)


def _texts_of_directory(tree: Path) -> dict[str, str]:
    files = [*(tree / UPSTREAM_DIRECTORY).glob(f"*{_SUFFIX}")]
    if not files and (tree / server_arguments.ARGUMENTS).is_file():
        files = [*tree.rglob(f"*{_SUFFIX}")]
    paths = (file.relative_to(tree).as_posix() for file in sorted(files) if file.is_file())
    return {_variant(path): read_text(tree / path, tolerant=True) for path in _recipes(paths)}


def _texts_of_ref(clone: Path, ref: str) -> dict[str, str]:
    opened = repository.source_clone(clone, ref)
    listed = repository.blobs(opened, ref)
    # Elsewhere only in what is llama.cpp: other projects have recipes too, and ours are called the same.
    within = "" if server_arguments.ARGUMENTS in listed else f"{UPSTREAM_DIRECTORY}/"
    paths = _recipes(path for path in listed if path.endswith(_SUFFIX) and path.startswith(within))
    if not paths:
        raise SourceError(f"{ref} of {clone} has no {UPSTREAM_DIRECTORY}/*{_SUFFIX}: is it a clone of llama.cpp?")
    return {_variant(path): text for path, text in repository.texts(opened, ref, *paths).items()}


def _recipes(paths: Iterable[str]) -> list[str]:
    """Returns the Dockerfiles of upstream's directory, or if it moved of the one that has most of our variants'."""
    directories: dict[str, list[str]] = {}
    for path in paths:
        directories.setdefault(str(PurePosixPath(path).parent), []).append(path)
    ours = {variant.name for variant in variants.VARIANTS}
    known = {name: len(ours & {*map(_variant, found)}) for name, found in directories.items()}
    moved = max(known, key=lambda name: known[name], default="")
    return directories.get(UPSTREAM_DIRECTORY) or (directories[moved] if known.get(moved) else [])


def load_records(path: Path) -> tuple[Record, ...]:
    """Returns the intended differences recorded in a file.

    Raises:
        UsageError: the file cannot be read, names an unknown variant, lacks a key or a reason, or has a key twice.
    """
    records: list[Record] = []
    for variant, groups in settings.read_toml(path).items():
        if variant != ALL:
            variants.find(variant)
        for group in groups if isinstance(groups, list) else [None]:
            match group:
                case {"reason": str(reason), **keys} if reason.strip() and keys:
                    lists = {str(name): value for name, value in keys.items()}
                    records += _records(path, variant, reason.strip(), lists)
                case _:
                    raise UsageError(f"{path}: each [[{variant}]] needs a reason and {_KEYS}.")
    for earlier, record in itertools.combinations(records, 2):
        if earlier.key == record.key and any(
            earlier.covers(variant.name) and record.covers(variant.name) for variant in variants.VARIANTS
        ):
            raise UsageError(f"{path} has the key {record.key!r} twice for {record.variant}: remove one.")
    return tuple(records)


_KEYS = "a list of keys, [[all]] also lists by variants in `some`, nothing else"


def _records(path: Path, variant: str, reason: str, keys: Mapping[str, Any]) -> Iterable[Record]:
    """Yields the records of one group; `some` has keys that only the variants named before them have."""
    some = keys.get("some", {}) if variant == ALL else None
    lists = {**({"": keys["keys"]} if "keys" in keys else {}), **(some if isinstance(some, dict) else {})}
    known = {"keys"} if some is None else {"keys", "some"}
    if keys.keys() - known or not lists or not isinstance(some, dict | None):
        raise UsageError(f"{path}: each [[{variant}]] needs a reason and {_KEYS}.")
    for names, listed in lists.items():
        if not isinstance(listed, list) or not listed:
            raise UsageError(f"{path}: each [[{variant}]] needs a reason and {_KEYS}.")
        only = tuple(variants.find(name).name for name in names.split())
        yield from (Record(variant=variant, key=str(key), reason=reason, only=only) for key in listed)


# Comparing.


def check(
    upstream: Mapping[str, str], ours: Mapping[str, str], records: Sequence[Record], chosen: Sequence[str] = ()
) -> Report:
    """Compares our recipes with upstream's files.

    Args:
        upstream: upstream's Dockerfiles by variant.
        ours: our recipes by variant.
        records: the intended differences.
        chosen: the variants to report on; empty means all.

    Raises:
        SourceError: a recipe of ours cannot be parsed.
        UsageError: a chosen variant has no recipe.
    """
    for name in chosen:
        if name not in ours:
            raise UsageError(f"There is no recipe {variants.find(name).dockerfile} yet: nothing can be compared.")
    comparisons = []
    matched: dict[Record, list[str]] = {record: [] for record in records}
    missed: dict[Record, list[str]] = {record: [] for record in records}
    for name in (name for name in ours if name in upstream):
        theirs = upstream_facts(upstream[name], f"{UPSTREAM_DIRECTORY}/{name}{_SUFFIX}")
        mine = our_facts(ours[name], variants.find(name).dockerfile)
        theirs, renamed = following_stages(theirs, mine)
        found = differences(
            [*theirs, *(renaming(ours, upstreams) for upstreams, ours in renamed.items())],
            [*mine, *(renaming(ours, ours) for ours in renamed.values())],
        )
        reasons = {record.key: record for record in records if record.covers(name)}
        keys, unread = {each.key for each in found}, unread_stages(theirs)
        for record in reasons.values():
            if record.key in keys or is_in(unread, record.stage):
                matched[record].append(name)
            else:
                missed[record].append(name)
        findings = tuple(_judge(difference, reasons.get(difference.key)) for difference in found)
        comparisons.append(Comparison(variant=name, same=len(set(theirs) & set(mine)), findings=findings))
    gone = tuple(name for name in ours if name not in upstream)
    shown = set(chosen or ours)
    stale = tuple(
        record
        for record in records
        if not matched[record]
        and record.variant not in gone
        and not (gone and record.variant == ALL)  # what upstream has no file for may be what it matched
        and (record.variant in {ALL, *shown} or not chosen)
        and (not record.only or not shown.isdisjoint({*record.only} - {*gone}))
    )
    lost = (
        Lost(record=record, variants=tuple(name for name in missed[record] if name in shown))
        for record in records
        if matched[record]
    )
    return Report(
        comparisons=tuple(comparison for comparison in comparisons if comparison.variant in shown),
        stale=stale,
        lost=tuple(each for each in lost if each.variants),
        gone=tuple(name for name in gone if name in shown),
        upstream_only=tuple(
            name for name in sorted(_servers(upstream)) if name not in {variant.name for variant in variants.VARIANTS}
        ),
        without_recipe=tuple(variant.name for variant in variants.VARIANTS if variant.name not in ours),
    )


def compare_refs(
    before: Mapping[str, str],
    after: Mapping[str, str],
    chosen: Sequence[str] = (),
    *,
    sources: tuple[argument_changes.Source, argument_changes.Source] | None = None,
    used: argument_changes.Used | None = None,
    others: Sequence[beyond.Change] = (),
) -> RefsReport:
    """Compares two refs of upstream.

    Args:
        before: upstream's Dockerfiles by variant at the older ref.
        after: the same at the newer ref.
        chosen: the variants to compare; empty means all.
        sources: the sources of llama-server's arguments at the older and the newer ref, to compare them too.
        used: the arguments and variables that the consumer uses, with the values that he passes; they are listed first.
        others: the changes outside of the Dockerfiles; those that `sources` tell, or of other variants, are left out.

    Raises:
        UsageError: neither ref has a chosen variant.
    """
    for name in chosen:
        if name not in {*before, *after}:
            raise UsageError(f"Neither ref has {UPSTREAM_DIRECTORY}/{name}{_SUFFIX}: leave --variant out to see all.")
    old, new = (
        {name: texts[name] for name in _servers(texts) if not chosen or name in chosen} for texts in (before, after)
    )
    facts = {
        name: tuple(upstream_facts(texts[name], f"{UPSTREAM_DIRECTORY}/{name}{_SUFFIX}") for texts in (old, new))
        for name in sorted(old.keys() & new.keys())
    }
    changes = {name: _between(*pair) for name, pair in facts.items()}
    unreadable = {
        name: sentences
        for name, (_, after_facts) in facts.items()
        if (sentences := tuple(fact.value for fact in after_facts if is_unreadable(fact)))
    }
    arguments = argument_changes.compare(*sources, used or {}) if sources else None
    told = {name for change in arguments.changes for name in change.names} if arguments else set()
    return RefsReport(
        changes=changes,
        appeared=tuple(sorted(new.keys() - old.keys())),
        disappeared=tuple(sorted(old.keys() - new.keys())),
        unreadable=unreadable,
        arguments=arguments,
        beyond=tuple(
            change
            for change in others
            if upstream_server.ARGUMENTS.get(change.what) not in told and (not chosen or {*chosen} & {*change.variants})
        ),
    )


def _between(before: Sequence[Fact], after: Sequence[Fact]) -> tuple[Difference, ...]:
    """Returns the differences between two versions of a file; a stage that was renamed keeps its old name in them."""
    newer, renamed = following_stages(after, before)
    return differences(
        [*before, *(renaming(old, old) for old in renamed.values())],
        [*newer, *(renaming(old, new) for new, old in renamed.items())],
    )


def _judge(difference: Difference, record: Record | None) -> Finding:
    if record:
        return Finding(difference=difference, status=Status.INTENDED, reason=record.reason)
    # A value that both have and that differs is upstream's to port as well: their newer one, most often.
    status = Status.NOT_PORTED if difference.before else Status.NOT_INTENDED
    if is_unreadable(difference.before):
        status = Status.UNREADABLE
    return Finding(difference=difference, status=status, reason="")


def _servers(texts: Mapping[str, str]) -> list[str]:
    """Returns the variants with a server stage; some of upstream's images hold only another program."""
    stage = re.compile(rf"^\s*FROM\s.*\sAS\s+{SERVER}\s*$", re.IGNORECASE | re.MULTILINE)
    return [name for name, text in texts.items() if stage.search(text)]
