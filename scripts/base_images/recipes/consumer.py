"""What BodhiApp does with these images, and whether a server takes the arguments that it passes.

`dockerfiles/consumer.toml` is what was read off BodhiApp's repository at one commit: its Dockerfiles as facts, its own
names for its settings, and the arguments that llama-server is known to refuse. Nothing here starts a server: who does
hands in what it said.
"""

from __future__ import annotations

import functools
import itertools
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from base_images import settings, versions
from base_images.errors import UsageError

FILE = "dockerfiles/consumer.toml"
"""The data, below the checkout."""

NAME = "BodhiApp"

_COMMON = "BODHI_LLAMACPP_ARGS"
_DIRECTORIES = "BODHI_EXEC_VARIANTS"

Words = tuple[str, ...]
"""Part of a command line, as a process gets it."""


@dataclass(frozen=True, kw_only=True)
class Dockerfile:
    """One of BodhiApp's Dockerfiles.

    Attributes:
        image: what its published stage starts from.
        instructions: what that stage says besides, as facts without their stage.
        settings: BodhiApp's own settings in /app/defaults.yaml.
    """

    image: str
    instructions: frozenset[str]
    settings: Mapping[str, str]

    @property
    def directories(self) -> Words:
        """Where llama-server is looked for below /app/bin/<triple>/, in this order."""
        return tuple(self.settings.get(_DIRECTORIES, "").split(","))

    def arguments(self, directory: str) -> Words:
        """Returns the arguments that the server of a directory is given after BodhiApp's own."""
        return tuple(
            f"{self.settings.get(_COMMON, '')} {self.settings.get(f'{_COMMON}_{directory.upper()}', '')}".split()
        )


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """An argument that llama-server is known to refuse.

    Attributes:
        variants: whose Dockerfiles pass it.
        instead: what works in its place; empty for nothing.
        since: when llama-server began to refuse it.
        because: why, and so why it is not ours to mend.
    """

    variants: Words
    argument: str
    instead: Words
    since: str
    because: str


@dataclass(frozen=True, kw_only=True)
class ServerCommand:
    """How BodhiApp starts and awaits its child.

    Attributes:
        arguments: its own, before those of the settings; `{alias}`, `{model}` and `{port}` stand for theirs.
        options: every option that its source file has.
        health: the path that is asked.
        attempts: how often, a second apart, before it gives up.
    """

    arguments: Words
    options: Words
    health: str
    attempts: int


@dataclass(frozen=True, kw_only=True)
class Consumer:
    """The data in `FILE`.

    Attributes:
        commit: of BodhiApp's repository, that it was read at.
        volumes: the directories that existing installations keep.
        volume_owner: the number that the files in them belong to.
        dockerfiles: by name, such as `cpu` or `multi-tenant`.
    """

    repository: str
    commit: str
    server: ServerCommand
    volumes: Words
    volume_owner: int
    dockerfiles: Mapping[str, Dockerfile]
    refusals: tuple[Refusal, ...]

    @property
    def options(self) -> frozenset[str]:
        """Every option of llama-server that BodhiApp passes."""
        passed = [
            dockerfile.arguments(one) for dockerfile in self.dockerfiles.values() for one in dockerfile.directories
        ]
        return frozenset(group[0] for words in (self.server.arguments, *passed) for group in grouped(words))

    def refusals_of(self, variant: str) -> tuple[Refusal, ...]:
        """Returns the known refusals of a variant's images."""
        return tuple(refusal for refusal in self.refusals if variant in refusal.variants)

    def command(self, *, alias: str, model: str, port: int) -> Words:
        """Returns BodhiApp's own arguments."""
        return tuple(word.format(alias=alias, model=model, port=port) for word in self.server.arguments)

    def starts(self, variant: str) -> tuple[tuple[str, Words], ...]:
        """Returns the directories that a variant's children start the server of, each with the settings' arguments.

        Raises:
            UsageError: no child starts from images of this variant.
        """
        of_variant = [
            one for one in self.dockerfiles.values() if one.image.endswith(f":{versions.latest_tag(variant)}")
        ]
        if not of_variant:
            raise UsageError(f"{NAME} has no Dockerfile on images of {variant}, by {FILE}: add what it does with them.")
        found = ((name, one.arguments(name)) for one in of_variant for name in one.directories)
        return tuple(dict.fromkeys(found))

    def working(self, variant: str, directory: str) -> Words:
        """Returns the settings' arguments for a directory, what is known to be refused replaced by what works."""
        return replaced(dict(self.starts(variant)).get(directory, ()), self.refusals_of(variant))


@functools.cache
def load(root: Path = settings.ROOT) -> Consumer:
    """Returns the data of the checkout at `root`.

    Raises:
        UsageError: it cannot be read, or lacks something.
    """
    path = root / FILE
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        shared = table["all"]
        consumer = Consumer(
            repository=table["repository"],
            commit=table["commit"],
            server=ServerCommand(
                arguments=tuple(table["server"]["arguments"]),
                options=tuple(table["server"]["options"]),
                health=table["server"]["health"],
                attempts=int(table["server"]["attempts"]),
            ),
            volumes=tuple(table["volumes"]["paths"]),
            volume_owner=int(table["volumes"]["owner"]),
            dockerfiles={
                name: Dockerfile(
                    image=one["image"],
                    instructions=frozenset((*shared["instructions"], *one["instructions"])),
                    settings={**shared["settings"], **one["settings"]},
                )
                for name, one in table["dockerfiles"].items()
            },
            refusals=tuple(
                Refusal(
                    variants=tuple(one["variants"]),
                    argument=one["argument"],
                    instead=tuple(one["instead"].split()),
                    since=one["since"],
                    because=one["because"],
                )
                for one in table["refusals"]
            ),
        )
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): restore it from git.") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}.") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{path} lacks something, or has it in another form ({error!r}): see git's version."
        ) from error
    for refusal in consumer.refusals:
        for name in refusal.variants:
            if not any(refusal.argument in arguments for _, arguments in consumer.starts(name)):
                raise UsageError(
                    f"{path}: {refusal.argument} is refused for {name}, whose Dockerfile does not pass it."
                )
    return consumer


def markdown_table(known: Consumer, names: Iterable[str]) -> str:
    """Returns the README's table of arguments, one row per variant: those that work, and what they stand for."""
    rows = [("variant", "arguments that work", f"{NAME} writes, and llama-server refuses"), ("---",) * 3]
    for name in names:
        working = " ".join(known.working(name, name))
        refused = ", ".join(f"`{refusal.argument}`" for refusal in known.refusals_of(name)) or "-"
        rows.append((name, f"`{working}`", refused))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


# Arguments.


def grouped(words: Sequence[str]) -> list[Words]:
    """Returns options with their values; a word of a dash and no letter, such as `-1`, is a value."""
    groups: list[Words] = []
    for word in words:
        if re.match(r"--?[A-Za-z]", word) or not groups:
            groups.append((word,))
        else:
            groups[-1] = (*groups[-1], word)
    return groups


def replaced(words: Sequence[str], refusals: Iterable[Refusal]) -> Words:
    """Returns arguments with those that are refused replaced by what works."""
    instead = {refusal.argument: refusal.instead for refusal in refusals}
    return _words(instead.get(group[0], group) for group in grouped(words))


def _words(groups: Iterable[Words]) -> Words:
    return tuple(itertools.chain.from_iterable(groups))


def value_of(option: str, words: Sequence[str]) -> str | None:
    """Returns an option's value among arguments, the last one if there are several; None where it is not there."""
    return next((group[1] for group in reversed(grouped(words)) if group[0] == option and len(group) > 1), None)


@dataclass(frozen=True, kw_only=True)
class Refused:
    """An argument that a server refused, and its own sentence about it."""

    argument: str
    sentence: str


# common_params_parse_ex and common_params_parse in llama.cpp's common/arg.cpp, the same from 2024 to b11549.
_REFUSED = re.compile(
    r'^(?:error: (?:invalid|unknown) argument: (?P<unknown>\S+)|error while handling argument "(?P<known>\S+)": .*)$',
    re.MULTILINE,
)


def refused(said: str) -> Refused | None:
    """Returns the argument that llama-server says it refuses; None where it says nothing of the kind."""
    found = _REFUSED.search(said)
    return Refused(argument=found["unknown"] or found["known"], sentence=found[0].strip()) if found else None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the server of one directory said to the arguments that BodhiApp's settings give it.

    Attributes:
        directory: below /app/bin/<triple>/.
        arguments: as BodhiApp passes them.
        refused: those that it refuses, in this order.
        failure: its last words, where it failed for another reason; empty where it did not.
    """

    directory: str
    arguments: Words
    refused: tuple[Refused, ...]
    failure: str = ""


def ask(
    directory: str, arguments: Words, refusals: Iterable[Refusal], server: Callable[[Words], tuple[int, str]]
) -> Answer:
    """Returns every argument that a server refuses; it names one at a time, which is left out or replaced then.

    Args:
        directory: of the server.
        arguments: to try.
        refusals: the known ones: what works instead is tried in their place.
        server: runs it with arguments and `--version`, at which it ends if it took all that came before
            (llama.cpp's common/arg.cpp); returns the exit code and what it said.
    """
    instead = {refusal.argument: refusal.instead for refusal in refusals}
    found: dict[str, Refused] = {}
    groups = grouped(arguments)
    while True:
        code, said = server(_words(groups))
        one = refused(said) if code else None
        # A second time it is what should work instead; what is no argument is a value, or a variable of the image.
        if one is None or one.argument in found or all(group[0] != one.argument for group in groups):
            last = (said.strip().splitlines() or [f"exit code {code}"])[-1].strip()
            failure = one.sentence if one else last if code else ""
            return Answer(directory=directory, arguments=arguments, refused=tuple(found.values()), failure=failure)
        found[one.argument] = one
        replacement = instead.get(one.argument, ())
        groups = [group for group in (replacement if group[0] == one.argument else group for group in groups) if group]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """How an image's answers stand to the known refusals.

    Attributes:
        findings: what is wrong, a sentence each.
        known: what is refused, and is known to be.
    """

    findings: tuple[str, ...]
    known: tuple[str, ...]


def judge(answers: Iterable[Answer], refusals: Sequence[Refusal]) -> Judgement:
    """Returns which refusals are new, which known ones are none any more, and which are as recorded."""
    findings: list[str] = []
    known: list[str] = []
    recorded = {refusal.argument: refusal for refusal in refusals}
    for answer in answers:
        where = f"{answer.directory}/llama-server"
        for one in answer.refused:
            if refusal := recorded.get(one.argument):
                instead = f"`{' '.join(refusal.instead)}`" if refusal.instead else "nothing"
                known.append(
                    f"{where} refuses {one.argument}, since {refusal.since}: {refusal.because}; instead: {instead}."
                )
            else:
                findings.append(f"{where} refuses {one.argument}, which {NAME} passes: {one.sentence}")
        if answer.failure:
            findings.append(f"{where} does not start with {NAME}'s arguments: {answer.failure}")
        refuses = {one.argument for one in answer.refused}
        findings += [
            f"{where} takes {argument}, which {FILE} records as refused: remove that record."
            for argument in recorded
            if argument in answer.arguments and argument not in refuses and not answer.failure
        ]
    return Judgement(findings=tuple(findings), known=tuple(known))
