"""The facts of upstream's Dockerfiles and of our recipes in the same terms, and the differences between them.

Three rules make the two comparable:
- Upstream's stage `server` is our `runtime`. Its stages `full` and `light` hold other programs: their existence and
  their base are compared, their contents are not.
- Our build context is the checkout, with the source in `llama.cpp/`: our `llama.cpp/x` is upstream's `x`.
- Base images are compared with every ARG in FROM expanded, so ARGs of ours that only name a base or hold the pin are
  not differences.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from base_images.recipes import dockerfile
from base_images.recipes import facts as recipe_facts
from base_images.recipes.facts import Fact

SERVER = "server"
"""Upstream's stage of the image that we ship."""

_STAGES = {SERVER: "runtime", "runtime": "upstream's runtime"}
"""The names that upstream's stages are compared by; a stage of upstream's with our name must not pass for ours."""

_OTHER_PROGRAMS = frozenset({"full", "light"})

_CONTEXT = "llama.cpp"

_PIN_ARGUMENTS = ("LLAMA_CPP_TAG", "LLAMA_CPP_COMMIT", "LLAMA_CPP_RELEASE")
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


def differences(before: Iterable[Fact], after: Iterable[Fact]) -> tuple[Difference, ...]:
    """Returns the differences between the facts of two files, in the order of stages and kinds.

    What a file lacks in a stage of which not all can be read is no difference: it may be in that part.
    """
    old, new = ({fact.subject: fact for fact in facts} for facts in (before, after))
    unread_old, unread_new = (unread_stages(facts.values()) for facts in (old, new))
    return tuple(
        Difference(before=old.get(subject), after=new.get(subject))
        for subject in sorted(old.keys() | new.keys())
        if old.get(subject) != new.get(subject)
        and (subject in old or is_unreadable(new[subject]) or not is_in(unread_old, new[subject].stage))
        and (subject in new or is_unreadable(old[subject]) or not is_in(unread_new, old[subject].stage))
    )


_SIMILAR = 0.5
"""The share of its facts that a stage keeps when it is renamed, values apart."""

_FEW = 3
"""The fewest facts that tell a stage from others."""


def following(facts: Sequence[Fact], names: Sequence[Fact]) -> tuple[tuple[Fact, ...], dict[str, str]]:
    """Returns the facts of a file with its stages as the other file, `names`, calls them, and those that it renamed.

    A stage was renamed if only one file has it, and one that only the other has says mostly the same. Both files get a
    fact of the kind `stage` for it with `renaming`, so that the name is one difference.
    """
    here, there = ({fact.stage for fact in each} for each in (facts, names))
    said = {
        stage: {(fact.kind, fact.name) for fact in each if fact.stage == stage}
        for each, stages in ((facts, here - there), (names, there - here))
        for stage in stages
    }
    pairs = sorted(
        (2 * len(said[new] & said[old]) / (len(said[new]) + len(said[old])), new, old)
        for new in here - there
        for old in there - here
        if min(len(said[new]), len(said[old])) >= _FEW
    )
    renamed: dict[str, str] = {}
    for alike, new, old in reversed(pairs):
        if alike >= _SIMILAR and new not in renamed and old not in renamed.values():
            renamed[new] = old
    return tuple(_renamed(fact, renamed) for fact in facts), renamed


def renaming(stage: str, name: str) -> Fact:
    """Returns the fact that a file calls a stage by a name of its own."""
    return Fact(stage=stage, kind="stage", name="", value=name)


def _renamed(fact: Fact, names: Mapping[str, str]) -> Fact:
    """Returns a fact with the stages of these names renamed, wherever it names them."""
    name, value = fact.name, fact.value
    for old, new in names.items():
        if fact.name.startswith(f"--from={old} "):
            name = fact.name.replace(old, new, 1)
        if fact.kind == "from" and fact.value == old:
            value = new
    return replace(fact, stage=names.get(fact.stage, fact.stage), name=name, value=value)


def is_unreadable(fact: Fact | None) -> bool:
    """Whether a fact stands for what cannot be read."""
    return fact is not None and fact.kind == recipe_facts.UNREADABLE


def unread_stages(facts: Iterable[Fact]) -> frozenset[str]:
    """Returns the stages of which not all can be read."""
    return frozenset(fact.stage for fact in facts if is_unreadable(fact))


def is_in(stages: frozenset[str], stage: str) -> bool:
    """Whether a stage is among those of which not all can be read."""
    return stage in stages or recipe_facts.WHOLE_FILE in stages


def upstream_facts(text: str, name: str) -> tuple[Fact, ...]:
    """Returns the facts of upstream's file for the comparison: with our names, without other programs.

    Raises:
        SourceError: as `recipe_facts.read_tolerantly`.
    """
    facts = recipe_facts.read_tolerantly(text, name)
    return tuple(_renamed(fact, _STAGES) for fact in facts if fact.stage not in _OTHER_PROGRAMS or fact.kind == "from")


def our_facts(text: str, name: str) -> tuple[Fact, ...]:
    """Returns the facts of our recipe for the comparison: with upstream's paths, without our own ARGs.

    Raises:
        SourceError: as `recipe_facts.read`.
    """
    facts = recipe_facts.read(text, name)
    return tuple(_in_upstream_context(fact) for fact in facts if fact.kind != "arg" or fact.name not in _OUR_ARGUMENTS)


def _in_upstream_context(fact: Fact) -> Fact:
    if fact.kind not in {"copy", "add"}:
        return fact
    return replace(fact, name="." if fact.name == _CONTEXT else fact.name.removeprefix(f"{_CONTEXT}/"))
