"""Compares our recipes with upstream's `.devops/<variant>.Dockerfile`: differences, and the recorded reasons for them.

Three rules make the two comparable:
- Upstream's stage `server` is our `runtime`. Its stages `full` and `light` hold other programs: their existence and
  their base are compared, their contents are not.
- Our build context is the checkout, with the source in `llama.cpp/`: our `llama.cpp/x` is upstream's `x`.
- Base images are compared with every ARG in FROM expanded, so ARGs of ours that only name a base or hold the pin are
  not differences.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

from base_images import settings, variants
from base_images.adapters import repository
from base_images.errors import SourceError, UsageError
from base_images.recipes import argument_changes, beyond, dockerfile, server_arguments, upstream_server
from base_images.recipes import facts as recipe_facts
from base_images.recipes.facts import Fact
from base_images.recipes.instructions import read_text

DIFFERENCES = "dockerfiles/differences.toml"
"""The records of intended differences, relative to the checkout."""

ALL = "all"
"""In `DIFFERENCES` in place of a variant's name: the record covers every variant that has the difference."""

UPSTREAM_DIRECTORY = ".devops"
_SUFFIX = ".Dockerfile"

_SERVER = "server"
_STAGES = {_SERVER: "runtime", "runtime": "upstream's runtime"}
"""The names that upstream's stages are compared by; a stage of upstream's with our name must not pass for ours."""

_OTHER_PROGRAMS = frozenset({"full", "light"})

_CONTEXT = "llama.cpp"

_PIN_ARGUMENTS = ("LLAMA_CPP_TAG", "LLAMA_CPP_COMMIT")
_OUR_ARGUMENTS = frozenset({*dockerfile.BASE_ARGUMENTS.values(), *_PIN_ARGUMENTS})


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A fact that only one of two Dockerfiles has, or that has different values.

    Attributes:
        before: upstream's fact, or the older ref's; None if it has none.
        after: our fact, or the newer ref's; None if it has none.
    """

    before: Fact | None
    after: Fact | None

    @property
    def key(self) -> str:
        """The difference as text: `-` is only before, `+` only after, `!` has both values.

        It includes the values, so that a record does not excuse the next change.
        """
        if self.before and self.after:
            return f"! {self.after.subject}: {self.before.value or 'no value'} -> {self.after.value or 'no value'}"
        return f"- {self.before}" if self.before else f"+ {self.after}"


class Status(StrEnum):
    """The judgement of a difference between upstream and us."""

    INTENDED = "intended"
    NOT_PORTED = "not ported"
    NOT_INTENDED = "not intended"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A judged difference; `reason` is empty unless it is intended."""

    difference: Difference
    status: Status
    reason: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """An intended difference of `DIFFERENCES`."""

    variant: str
    key: str
    reason: str


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
        gone: recipes without a file at upstream.
        upstream_only: upstream's variants that our table lacks.
        without_recipe: variants of our table without a recipe.
    """

    comparisons: tuple[Comparison, ...]
    stale: tuple[Record, ...]
    gone: tuple[str, ...]
    upstream_only: tuple[str, ...]
    without_recipe: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every difference is intended, every record matches, and upstream has every variant."""
        unexplained = any(
            finding.status is not Status.INTENDED for comparison in self.comparisons for finding in comparison.findings
        )
        return not (unexplained or self.stale or self.gone)

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
        beyond: changes outside of the Dockerfiles.
    """

    changes: Mapping[str, tuple[Difference, ...]]
    appeared: tuple[str, ...]
    disappeared: tuple[str, ...]
    arguments: argument_changes.Report | None = None
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
    return {_variant(path): read_text(tree / path) for path in _recipes(paths)}


def _texts_of_ref(clone: Path, ref: str) -> dict[str, str]:
    opened = repository.source_clone(clone, ref)
    listed = repository.paths(opened, ref)
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
                case {"reason": str(reason), "keys": [*keys], **others} if reason.strip() and keys and not others:
                    records += [Record(variant=variant, key=str(key), reason=reason.strip()) for key in keys]
                case _:
                    raise UsageError(f"{path}: each [[{variant}]] needs a reason and a list of keys, nothing else.")
    for earlier, record in itertools.combinations(records, 2):
        if earlier.key == record.key and (
            earlier.variant == record.variant or ALL in {earlier.variant, record.variant}
        ):
            raise UsageError(f"{path} has the key {record.key!r} twice for {record.variant}: remove one.")
    return tuple(records)


# Comparing.


def differences(before: Iterable[Fact], after: Iterable[Fact]) -> tuple[Difference, ...]:
    """Returns the differences between the facts of two files, in the order of stages and kinds."""
    old, new = ({fact.subject: fact for fact in facts} for facts in (before, after))
    return tuple(
        Difference(before=old.get(subject), after=new.get(subject))
        for subject in sorted(old.keys() | new.keys())
        if old.get(subject) != new.get(subject)
    )


def upstream_facts(text: str, name: str) -> tuple[Fact, ...]:
    """Returns the facts of upstream's file for the comparison: with our names, without other programs.

    Raises:
        SourceError: as `recipe_facts.read`.
    """
    facts = recipe_facts.read(text, name)
    return tuple(_as_ours(fact) for fact in facts if fact.stage not in _OTHER_PROGRAMS or fact.kind == "from")


def our_facts(text: str, name: str) -> tuple[Fact, ...]:
    """Returns the facts of our recipe for the comparison: with upstream's paths, without our own ARGs.

    Raises:
        SourceError: as `recipe_facts.read`.
    """
    facts = recipe_facts.read(text, name)
    return tuple(_in_upstream_context(fact) for fact in facts if fact.kind != "arg" or fact.name not in _OUR_ARGUMENTS)


def _as_ours(fact: Fact) -> Fact:
    name, value = fact.name, fact.value
    for theirs, ours in _STAGES.items():
        if fact.name.startswith(f"--from={theirs} "):
            name = fact.name.replace(theirs, ours, 1)
        if fact.kind == "from" and fact.value == theirs:
            value = ours
    return replace(fact, stage=_STAGES.get(fact.stage, fact.stage), name=name, value=value)


def _in_upstream_context(fact: Fact) -> Fact:
    if fact.kind not in {"copy", "add"}:
        return fact
    return replace(fact, name="." if fact.name == _CONTEXT else fact.name.removeprefix(f"{_CONTEXT}/"))


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
        SourceError: a file cannot be parsed.
        UsageError: a chosen variant has no recipe.
    """
    for name in chosen:
        if name not in ours:
            raise UsageError(f"There is no recipe {variants.find(name).dockerfile} yet: nothing can be compared.")
    comparisons = []
    used: set[tuple[str, str]] = set()
    for name in (name for name in ours if name in upstream):
        theirs = upstream_facts(upstream[name], f"{UPSTREAM_DIRECTORY}/{name}{_SUFFIX}")
        mine = our_facts(ours[name], variants.find(name).dockerfile)
        found = differences(theirs, mine)
        reasons = {record.key: record for record in records if record.variant in {ALL, name}}
        used |= {(reasons[each.key].variant, each.key) for each in found if each.key in reasons}
        findings = tuple(_judge(difference, reasons.get(difference.key)) for difference in found)
        comparisons.append(Comparison(variant=name, same=len(set(theirs) & set(mine)), findings=findings))
    gone = tuple(name for name in ours if name not in upstream)
    shown = set(chosen or ours)
    stale = tuple(
        record
        for record in records
        if (record.variant, record.key) not in used
        and record.variant not in gone
        and not (gone and record.variant == ALL)  # what upstream has no file for may be what it matched
        and (record.variant in {ALL, *shown} or not chosen)
    )
    return Report(
        comparisons=tuple(comparison for comparison in comparisons if comparison.variant in shown),
        stale=stale,
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
    used: Collection[str] = (),
    others: Sequence[beyond.Change] = (),
) -> RefsReport:
    """Compares two refs of upstream.

    Args:
        before: upstream's Dockerfiles by variant at the older ref.
        after: the same at the newer ref.
        chosen: the variants to compare; empty means all.
        sources: the sources of llama-server's arguments at the older and the newer ref, to compare them too.
        used: the arguments and variables that the consumer uses, which are listed first.
        others: the changes outside of the Dockerfiles; those that `sources` tell, or of other variants, are left out.

    Raises:
        SourceError: a file cannot be parsed.
        UsageError: neither ref has a chosen variant.
    """
    for name in chosen:
        if name not in {*before, *after}:
            raise UsageError(f"Neither ref has {UPSTREAM_DIRECTORY}/{name}{_SUFFIX}: leave --variant out to see all.")
    old, new = (
        {name: texts[name] for name in _servers(texts) if not chosen or name in chosen} for texts in (before, after)
    )
    changes = {
        name: differences(upstream_facts(old[name], f"{name}, before"), upstream_facts(new[name], f"{name}, after"))
        for name in sorted(old.keys() & new.keys())
    }
    arguments = argument_changes.compare(*sources, used) if sources else None
    told = {name for change in arguments.changes for name in change.names} if arguments else set()
    return RefsReport(
        changes=changes,
        appeared=tuple(sorted(new.keys() - old.keys())),
        disappeared=tuple(sorted(old.keys() - new.keys())),
        arguments=arguments,
        beyond=tuple(
            change
            for change in others
            if upstream_server.ARGUMENTS.get(change.what) not in told and (not chosen or {*chosen} & {*change.variants})
        ),
    )


def _judge(difference: Difference, record: Record | None) -> Finding:
    if record:
        return Finding(difference=difference, status=Status.INTENDED, reason=record.reason)
    status = Status.NOT_INTENDED if difference.after else Status.NOT_PORTED
    return Finding(difference=difference, status=status, reason="")


def _servers(texts: Mapping[str, str]) -> list[str]:
    """Returns the variants with a server stage; some of upstream's images hold only another program."""
    stage = re.compile(rf"^\s*FROM\s.*\sAS\s+{_SERVER}\s*$", re.IGNORECASE | re.MULTILINE)
    return [name for name, text in texts.items() if stage.search(text)]
