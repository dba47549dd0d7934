"""Our recipes against upstream's `.devops/<variant>.Dockerfile`: what differs, and whether somebody said why.

Three rules let the two be compared:
- Upstream's stage `server` is our `runtime`. Its `full` and `light` hold other programs: that they exist and what they
  start from is compared, what is in them is not.
- Our build context is the checkout, with the source in `llama.cpp/`: `llama.cpp/x` there is `x` upstream.
- A base image is compared as FROM has it with every ARG replaced, so our ARGs that only name a base, and those of the
  pin, are no differences themselves.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from base_images import variants
from base_images.adapters import programs
from base_images.adapters.repository import commit_of
from base_images.errors import SourceError, UsageError
from base_images.recipes import argument_changes, consumer, dockerfile, server_arguments
from base_images.recipes import facts as recipe_facts
from base_images.recipes.facts import Fact
from base_images.settings import Pin

DIFFERENCES = "dockerfiles/differences.toml"
"""The intended differences, below the checkout."""

ALL = "all"
"""In `DIFFERENCES`, where a variant's name stands otherwise: the difference is that of any variant that has it."""

UPSTREAM_DIRECTORY = ".devops"
_SUFFIX = ".Dockerfile"

_SERVER = "server"
_STAGES = {_SERVER: "runtime", "runtime": "upstream's runtime"}
"""Upstream's stages under the names that they are compared by; one that took our name would else be taken for ours."""

_OTHER_PROGRAMS = frozenset({"full", "light"})

_CONTEXT = "llama.cpp"

_PIN_ARGUMENTS = ("LLAMA_CPP_TAG", "LLAMA_CPP_COMMIT")
_OUR_ARGUMENTS = frozenset({*dockerfile.BASE_ARGUMENTS.values(), *_PIN_ARGUMENTS})


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A fact that only one of two Dockerfiles has, or that has another value in the other.

    Attributes:
        before: upstream's fact, or that of the older ref; None when it has none.
        after: our fact, or that of the newer ref; None when it has none.
    """

    before: Fact | None
    after: Fact | None

    @property
    def key(self) -> str:
        """The difference as text: `-` is only before, `+` only after, `!` has both values.

        It holds the values, so that a record of it is no excuse for the next one.
        """
        if self.before and self.after:
            return f"! {self.after.subject}: {self.before.value or 'no value'} -> {self.after.value or 'no value'}"
        return f"- {self.before}" if self.before else f"+ {self.after}"


class Status(StrEnum):
    """What a difference between upstream and us is."""

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
    """How our recipes stand to an upstream tree.

    Attributes:
        comparisons: one for each recipe that upstream has a file for.
        stale: records that match no difference any more.
        gone: our recipes that upstream has no file for.
        upstream_only: variants that upstream has and our table has not.
        without_recipe: variants of our table that have no recipe yet.
    """

    comparisons: tuple[Comparison, ...]
    stale: tuple[Record, ...]
    gone: tuple[str, ...]
    upstream_only: tuple[str, ...]
    without_recipe: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every difference is intended and every record is one of a difference."""
        unexplained = any(
            finding.status is not Status.INTENDED for comparison in self.comparisons for finding in comparison.findings
        )
        return not (unexplained or self.stale or self.gone)

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as JSON has it."""
        return {
            "ok": self.ok,
            "variants": {
                comparison.variant: {
                    "same": comparison.same,
                    "differences": [
                        {
                            "key": finding.difference.key,
                            "status": finding.status.value,
                            "reason": finding.reason,
                        }
                        for finding in comparison.findings
                    ],
                }
                for comparison in self.comparisons
            },
            "stale": [{"variant": record.variant, "key": record.key, "reason": record.reason} for record in self.stale],
            "gone": list(self.gone),
            "upstream_only": list(self.upstream_only),
            "without_recipe": list(self.without_recipe),
        }


@dataclass(frozen=True, kw_only=True)
class RefsReport:
    """What upstream changed between two refs.

    Attributes:
        changes: of every variant that both have, its differences; before is the older ref.
        appeared: variants that only the newer ref has.
        disappeared: variants that only the older ref has.
        arguments: what changed of llama-server's arguments; None where nobody asked.
    """

    changes: Mapping[str, tuple[Difference, ...]]
    appeared: tuple[str, ...]
    disappeared: tuple[str, ...]
    arguments: argument_changes.Report | None = None

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as JSON has it."""
        return {
            "variants": {name: [one.key for one in differences] for name, differences in self.changes.items()},
            "appeared": list(self.appeared),
            "disappeared": list(self.disappeared),
            **({"arguments": self.arguments.as_dict()} if self.arguments else {}),
        }


# Reading.


def upstream_texts(tree: Path, ref: str = "") -> dict[str, str]:
    """Returns upstream's Dockerfiles by the name of their variant: those of a tree, or of a ref of the clone there.

    Raises:
        SourceError: there are none, or the tree is not a git clone or does not know the ref.
    """
    texts = _texts_of_ref(tree, ref) if ref else _texts_of_directory(tree / UPSTREAM_DIRECTORY)
    if not texts:
        raise SourceError(f"{tree} has no {UPSTREAM_DIRECTORY}/*{_SUFFIX}: give --source a tree of llama.cpp.")
    return texts


def argument_source(clone: Path, ref: str, name: str = "") -> argument_changes.Source:
    """Returns what a ref of a clone has of the files that say llama-server's arguments; it may have none of them.

    Args:
        clone: a clone of llama.cpp.
        ref: a tag or commit of it.
        name: what a person calls it; the ref if empty.

    Raises:
        SourceError: there is no clone, or it does not know the ref.
    """
    texts = {}
    with commit_of(clone, ref) as commit:
        for path in server_arguments.FILES:
            try:
                texts[path] = (commit.tree / path).data_stream.read().decode()
            except KeyError:
                continue
    return argument_changes.Source(name=name or ref, texts=texts)


def our_texts(root: Path) -> dict[str, str]:
    """Returns the recipes of the checkout at `root` by the name of their variant."""
    recipes = {variant.name: root / variant.dockerfile for variant in variants.VARIANTS}
    return {name: path.read_text(encoding="utf-8") for name, path in recipes.items() if path.is_file()}


def _texts_of_directory(directory: Path) -> dict[str, str]:
    files = sorted(directory.glob(f"*{_SUFFIX}"))
    return {file.name.removesuffix(_SUFFIX): file.read_text(encoding="utf-8") for file in files}


def _texts_of_ref(clone: Path, ref: str) -> dict[str, str]:
    with commit_of(clone, ref) as commit:
        try:
            directory = commit.tree / UPSTREAM_DIRECTORY
        except KeyError as error:
            raise SourceError(f"{ref} of {clone} has no {UPSTREAM_DIRECTORY}: is it a clone of llama.cpp?") from error
        return {
            blob.name.removesuffix(_SUFFIX): blob.data_stream.read().decode()
            for blob in directory.blobs
            if blob.name.endswith(_SUFFIX)
        }


def load_records(path: Path) -> tuple[Record, ...]:
    """Returns the intended differences that a file records.

    Raises:
        UsageError: it cannot be read, names no variant of ours, lacks a key or a reason, or says something twice.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): restore it from git.") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}.") from error
    records: list[Record] = []
    for variant, groups in tables.items():
        if variant != ALL:
            variants.find(variant)
        for group in groups:
            match group:
                case {"reason": str(reason), "keys": [*keys], **others} if reason.strip() and keys and not others:
                    records += [Record(variant=variant, key=str(key), reason=reason.strip()) for key in keys]
                case _:
                    raise UsageError(f"{path}: each [[{variant}]] needs a reason and a list of keys, nothing else.")
    for number, record in enumerate(records):
        for earlier in records[:number]:
            if earlier.key == record.key and (
                earlier.variant == record.variant or ALL in {earlier.variant, record.variant}
            ):
                raise UsageError(f"{path} has the key {record.key!r} twice for {record.variant}: remove one.")
    return tuple(records)


# Comparing.


def differences(before: Iterable[Fact], after: Iterable[Fact]) -> tuple[Difference, ...]:
    """Returns what differs between two files' facts, in the order of stages and kinds."""
    old, new = ({fact.subject: fact for fact in facts} for facts in (before, after))
    return tuple(
        Difference(before=old.get(subject), after=new.get(subject))
        for subject in sorted(old.keys() | new.keys())
        if old.get(subject) != new.get(subject)
    )


def upstream_facts(text: str, name: str) -> tuple[Fact, ...]:
    """Returns the facts of a file of upstream's as they are compared: named as ours, other programs left out.

    Raises:
        SourceError: as `recipe_facts.read`.
    """
    return tuple(_as_ours(fact) for fact in recipe_facts.read(text, name) if _is_compared(fact))


def our_facts(text: str, name: str) -> tuple[Fact, ...]:
    """Returns the facts of a recipe of ours as they are compared: paths as upstream has them, without our own ARGs.

    Raises:
        SourceError: as `recipe_facts.read`.
    """
    return tuple(_in_upstream_context(fact) for fact in recipe_facts.read(text, name) if not _is_our_argument(fact))


def _is_compared(fact: Fact) -> bool:
    return fact.stage not in _OTHER_PROGRAMS or fact.kind == "from"


def _is_our_argument(fact: Fact) -> bool:
    return fact.kind == "arg" and fact.name in _OUR_ARGUMENTS


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
    upstream: Mapping[str, str],
    ours: Mapping[str, str],
    records: Sequence[Record],
    chosen: Sequence[str] = (),
) -> Report:
    """Returns how our recipes stand to upstream's files.

    Args:
        upstream: upstream's Dockerfiles by variant.
        ours: our recipes by variant.
        records: the intended differences.
        chosen: the variants to report on; none means all.

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
        used |= {(reasons[one.key].variant, one.key) for one in found if one.key in reasons}
        findings = tuple(_judge(one, reasons.get(one.key)) for one in found)
        comparisons.append(Comparison(variant=name, same=len(set(theirs) & set(mine)), findings=findings))
    gone = tuple(name for name in ours if name not in upstream)
    shown = set(chosen or ours)
    stale = tuple(
        record
        for record in records
        if (record.variant, record.key) not in used
        and record.variant not in gone
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
) -> RefsReport:
    """Returns what changed from one ref of upstream's to another.

    Args:
        before: upstream's Dockerfiles by variant at the older ref.
        after: at the newer one.
        chosen: the variants whose files are compared; none means all.
        sources: of the older and of the newer ref what says llama-server's arguments, to compare them too.
        used: the arguments and variables that the consumer uses, to come first.

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
    return RefsReport(
        changes=changes,
        appeared=tuple(sorted(new.keys() - old.keys())),
        disappeared=tuple(sorted(old.keys() - new.keys())),
        arguments=argument_changes.compare(*sources, used) if sources else None,
    )


def _judge(difference: Difference, record: Record | None) -> Finding:
    if record:
        return Finding(difference=difference, status=Status.INTENDED, reason=record.reason)
    status = Status.NOT_INTENDED if difference.after else Status.NOT_PORTED
    return Finding(difference=difference, status=status, reason="")


def _servers(texts: Mapping[str, str]) -> list[str]:
    """Returns the variants that have a server; upstream also has images of one other program."""
    stage = re.compile(rf"^\s*FROM\s.*\sAS\s+{_SERVER}\s*$", re.IGNORECASE | re.MULTILINE)
    return [name for name, text in texts.items() if stage.search(text)]


# Moving the pin.


def pinned_texts(root: Path) -> dict[str, str]:
    """Returns the files of the checkout at `root` that say the pin, by their path: pyproject.toml and the recipes."""
    paths = ["pyproject.toml", *(variants.find(name).dockerfile for name in our_texts(root))]
    return {path: (root / path).read_text(encoding="utf-8") for path in paths}


def bump(texts: Mapping[str, str], pin: Pin, *, tag: str, commit: str) -> dict[str, str]:
    """Returns the texts with the pin moved: pyproject.toml's table, and the defaults of every recipe.

    The sdist of the pin stays: which one vendors the new commit, if any does, is not to be told from a tag.

    Args:
        texts: what `pinned_texts` returns.
        pin: what they say now.
        tag: the new tag, such as `b11400`.
        commit: its full hash.

    Raises:
        UsageError: the tag or commit is none, or a file does not say the pin exactly once.
    """
    if not re.fullmatch(r"b\d+", tag) or not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise UsageError(f"{tag!r} ({commit!r}) is no tag of llama.cpp with its full commit: tags are like b11312.")
    moved: dict[str, str] = {}
    for path, text in texts.items():
        forms = ('tag = "{}"', 'commit = "{}"')
        if not path.endswith(".toml"):
            forms = ("ARG LLAMA_CPP_TAG={}", "ARG LLAMA_CPP_COMMIT={}")
        moved[path] = text
        for form, old, new in zip(forms, (pin.tag, pin.commit), (tag, commit), strict=True):
            line = form.format(old)
            moved[path], count = re.subn(f"^{re.escape(line)}$", form.format(new), moved[path], flags=re.MULTILINE)
            if count != 1:
                raise UsageError(f"{path} has the line `{line}` {count} times instead of once: put it right first.")
    return moved


def tag_commit(repository: str, tag: str) -> str:
    """Returns the commit of a tag; `repository` is an address or the path of a clone.

    Raises:
        SourceError: the repository does not answer, or has no such tag.
    """
    listed = programs.git("ls-remote", repository, f"refs/tags/{tag}", f"refs/tags/{tag}^{{}}", timeout=60)
    if listed.exit_code:
        raise SourceError(f"{repository} cannot be asked for {tag} ({listed.last_words}): give --source a clone.")
    # The line that ends in ^{} is the commit of an annotated tag, and comes last.
    lines = listed.stdout.splitlines()
    if not lines:
        raise SourceError(f"{repository} has no tag {tag!r}: tags of llama.cpp are like b11312.")
    return lines[-1].split()[0]


def newest_tag(repository: str) -> str:
    """Returns the tag `b<number>` with the highest number; `repository` is an address or the path of a clone.

    Raises:
        SourceError: the repository does not answer, or has no such tag.
    """
    listed = programs.git("ls-remote", "--tags", "--refs", repository, "refs/tags/b*", timeout=60)
    if listed.exit_code:
        raise SourceError(f"{repository} cannot be asked for its tags ({listed.last_words}): give --source a clone.")
    numbers = [int(number) for number in re.findall(r"\trefs/tags/b(\d+)$", listed.stdout, re.MULTILINE)]
    if not numbers:
        raise SourceError(f"{repository} has no tag of llama.cpp: they are like b11312.")
    return f"b{max(numbers)}"


def markdown(changed: RefsReport, result: Report, *, before: str, after: str) -> str:
    """Returns the text of a pull request that moves the pin: what upstream changed, and what our recipes lack of it.

    Args:
        changed: what upstream changed between the two tags.
        result: how our recipes stand to the newer one.
        before: the older tag.
        after: the newer one.
    """
    dockerfiles = [
        line
        for variant, found in changed.changes.items()
        for line in bullets(variant, (code(one.key) for one in found))
    ]
    dockerfiles += bullets("new at upstream", changed.appeared) + bullets("gone at upstream", changed.disappeared)
    warning = [f"**{changed.arguments.warning}**", ""] if changed.arguments and changed.arguments.warning else []
    lines = [f"llama.cpp {before} → {after}.", "", *warning, "## What upstream changed in its Dockerfiles", ""]
    lines += dockerfiles or ["Nothing.", ""]
    if arguments := changed.arguments:
        lines += ["## What changed in llama-server's arguments", ""]
        used, others = ([code(str(one)) for one in arguments.changes if one.used is wanted] for wanted in (True, False))
        listed = bullets(f"used by {consumer.NAME}", used) + bullets("others", others)
        lines += listed or [code(arguments.not_compared) if arguments.not_compared else "Nothing.", ""]
    lines += ["## What our recipes need for it", ""]
    if result.ok:
        return "\n".join([*lines, "Nothing: every difference is intended (`invoke check-upstream`).", ""])
    lines += ["`invoke check-upstream` fails until each of these is ported, or recorded with its reason.", ""]
    for comparison in result.comparisons:
        unexplained = [finding for finding in comparison.findings if finding.status is not Status.INTENDED]
        lines += bullets(comparison.variant, (f"{one.status}: {code(one.difference.key)}" for one in unexplained))
    for record in result.stale:
        lines += bullets(f"{record.variant}: a record that matches nothing any more", [code(record.key)])
    return "\n".join(lines + bullets("our recipes that upstream has no file for", result.gone))


def bullets(what: str, lines: Iterable[str]) -> list[str]:
    """Returns a bold line and a list in Markdown, line by line; nothing without lines."""
    listed = [f"- {line}" for line in lines]
    return [f"**{what}**", "", *listed, ""] if listed else []


def code(text: str) -> str:
    """Returns text as code of one line in Markdown, whatever backquotes are in it."""
    line = " ".join(text.split())
    return f"`` {line} ``" if "`" in line else f"`{line}`"


def fetch_refs(repository: str, refs: Sequence[str], directory: Path) -> None:
    """Makes `directory` a bare clone of `repository` that has `refs`, tags or full commits, without history.

    Raises:
        SourceError: the repository does not answer or lacks one of them.
    """
    wanted = [f"refs/tags/{ref}:refs/tags/{ref}" if not re.fullmatch(r"[0-9a-f]{40}", ref) else ref for ref in refs]
    for arguments in (["init", "--quiet", "--bare", "--template="], ["fetch", "--depth=1", "--no-tags", repository]):
        extra = wanted if arguments[0] == "fetch" else []
        done = programs.git(*arguments, *extra, directory=directory)
        if done.exit_code:
            raise SourceError(f"{' and '.join(refs)} cannot be fetched from {repository} ({done.last_words}).")
