"""How BodhiApp uses these images, and whether a server accepts the arguments that it passes.

`dockerfiles/consumer.toml` records BodhiApp's repository at one commit: its Dockerfiles as facts, its settings by its
own names, and the arguments that llama-server is known to refuse. Nothing here starts a server: callers pass output.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from base_images import settings, versions
from base_images.errors import UsageError

FILE = "dockerfiles/consumer.toml"
"""The data, relative to the checkout."""

NAME = "BodhiApp"

_COMMON = "BODHI_LLAMACPP_ARGS"
_DIRECTORIES = "BODHI_EXEC_VARIANTS"

Words = tuple[str, ...]
"""Part of a command line, as a process receives it."""


@dataclass(frozen=True, kw_only=True)
class Dockerfile:
    """One of BodhiApp's Dockerfiles.

    Attributes:
        image: the base image of its published stage.
        instructions: the other facts of that stage, without the stage's name.
        settings: BodhiApp's settings in /app/defaults.yaml.
    """

    image: str
    instructions: frozenset[str]
    settings: Mapping[str, str]

    @property
    def directories(self) -> Words:
        """The directories below /app/bin/<triple>/ that BodhiApp searches for llama-server, in order."""
        return tuple(self.settings.get(_DIRECTORIES, "").split(","))

    def arguments(self, directory: str) -> Words:
        """Returns the arguments from the settings for the server of a directory; they follow BodhiApp's own."""
        return tuple(
            f"{self.settings.get(_COMMON, '')} {self.settings.get(f'{_COMMON}_{directory.upper()}', '')}".split()
        )


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """An argument that llama-server is known to refuse.

    Attributes:
        variants: the variants whose Dockerfiles pass it.
        instead: the arguments that work in its place; may be empty.
        since: the build of llama-server that began to refuse it.
        because: the reason, and why this project cannot fix it.
    """

    variants: Words
    argument: str
    instead: Words
    since: str
    because: str


@dataclass(frozen=True, kw_only=True)
class ServerCommand:
    """How BodhiApp starts llama-server and waits for it.

    Attributes:
        arguments: BodhiApp's own, before those of the settings, with the fields `{alias}`, `{model}` and `{port}`.
        options: every option in its source file.
        health: the path of the health check.
        attempts: the number of health checks, a second apart, before it gives up.
    """

    arguments: Words
    options: Words
    health: str
    attempts: int


@dataclass(frozen=True, kw_only=True)
class Consumer:
    """The data in `FILE`.

    Attributes:
        commit: the commit of BodhiApp's repository that the data records.
        volumes: the directories that existing installations keep in volumes.
        volume_owner: the user id that owns the files there.
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
    def options(self) -> dict[str, set[Words]]:
        """Every option of llama-server that BodhiApp passes, with the values that it passes to it."""
        passed = [
            dockerfile.arguments(directory)
            for dockerfile in self.dockerfiles.values()
            for directory in dockerfile.directories
        ]
        found: dict[str, set[Words]] = {}
        for words in (self.server.arguments, *passed):
            for option, *values in grouped(words):
                found.setdefault(option, set()).add(tuple(values))
        return found

    def refusals_of(self, variant: str) -> tuple[Refusal, ...]:
        """Returns the known refusals of a variant."""
        return tuple(refusal for refusal in self.refusals if variant in refusal.variants)

    def command(self, *, alias: str, model: str, port: int) -> Words:
        """Returns BodhiApp's own arguments."""
        return tuple(word.format(alias=alias, model=model, port=port) for word in self.server.arguments)

    def starts(self, variant: str) -> tuple[tuple[str, Words], ...]:
        """Returns the directories whose server a variant's child images start, each with the arguments of the settings.

        Raises:
            UsageError: no child image starts from this variant.
        """
        tag = f":{versions.latest_tag(variant)}"
        of_variant = [dockerfile for dockerfile in self.dockerfiles.values() if dockerfile.image.endswith(tag)]
        if not of_variant:
            raise UsageError(f"{FILE} has no Dockerfile on images of {variant}: add the one of {NAME}.")
        found = ((name, dockerfile.arguments(name)) for dockerfile in of_variant for name in dockerfile.directories)
        return tuple(dict.fromkeys(found))

    def working(self, variant: str, directory: str) -> Words:
        """Returns the arguments of the settings for a directory, with known refusals replaced."""
        return replaced(dict(self.starts(variant)).get(directory, ()), self.refusals_of(variant))


@functools.cache
def load(root: Path = settings.ROOT) -> Consumer:
    """Returns the data of the checkout at `root`.

    Raises:
        UsageError: the file cannot be read or is incomplete.
    """
    path = root / FILE
    table = settings.read_toml(path)
    try:
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
                    image=entry["image"],
                    instructions=frozenset((*shared["instructions"], *entry["instructions"])),
                    settings={**shared["settings"], **entry["settings"]},
                )
                for name, entry in table["dockerfiles"].items()
            },
            refusals=tuple(
                Refusal(
                    variants=tuple(entry["variants"]),
                    argument=entry["argument"],
                    instead=tuple(entry["instead"].split()),
                    since=entry["since"],
                    because=entry["because"],
                )
                for entry in table["refusals"]
            ),
        )
        consumer.command(alias="", model="", port=1)
        unpassed = [
            (refusal.argument, name)
            for refusal in consumer.refusals
            for name in refusal.variants
            if not any(refusal.argument in arguments for _, arguments in consumer.starts(name))
        ]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{path} lacks something, or has it in another form ({error!r}): see git's version."
        ) from error
    for argument, name in unpassed:
        raise UsageError(f"{path}: {argument} is refused for {name}, whose Dockerfile does not pass it.")
    return consumer


# Arguments.


def grouped(words: Sequence[str]) -> list[Words]:
    """Groups options with their values; a dash without a letter, as in `-1`, begins a value."""
    groups: list[Words] = []
    for word in words:
        if re.match(r"--?[A-Za-z]", word) or not groups:
            groups.append((word,))
        else:
            groups[-1] = (*groups[-1], word)
    return groups


def replaced(words: Sequence[str], refusals: Iterable[Refusal]) -> Words:
    """Returns arguments with the refused ones replaced."""
    instead = {refusal.argument: refusal.instead for refusal in refusals}
    return _words(instead.get(group[0], group) for group in grouped(words))


def _words(groups: Iterable[Words]) -> Words:
    return tuple(itertools.chain.from_iterable(groups))


def value_of(option: str, words: Sequence[str]) -> str | None:
    """Returns the last value of an option among arguments; None without one."""
    return next((group[1] for group in reversed(grouped(words)) if group[0] == option and len(group) > 1), None)


@dataclass(frozen=True, kw_only=True)
class Refused:
    """An argument that a server refused, and the server's error message."""

    argument: str
    sentence: str


# common_params_parse_ex and common_params_parse in llama.cpp's common/arg.cpp, the same from 2024 to b11549.
_REFUSED = re.compile(
    r'^(?:error: (?:invalid|unknown) argument: (?P<unknown>\S+)|error while handling argument "(?P<known>\S+)": .*)$',
    re.MULTILINE,
)


def refused(output: str) -> Refused | None:
    """Returns the argument that llama-server's output reports as refused; None if there is none."""
    found = _REFUSED.search(output)
    return Refused(argument=found["unknown"] or found["known"], sentence=found[0].strip()) if found else None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The response of one directory's server to the arguments of BodhiApp's settings.

    Attributes:
        directory: its name below /app/bin/<triple>/.
        arguments: the arguments, as BodhiApp passes them.
        refused: the refused ones, in order of refusal.
        failure: the last line of output, if it failed for another reason; else empty.
    """

    directory: str
    arguments: Words
    refused: tuple[Refused, ...]
    failure: str = ""


def ask(
    directory: str, arguments: Words, refusals: Iterable[Refusal], server: Callable[[Words], tuple[int, str]]
) -> Answer:
    """Returns every argument that a server refuses; it reports one at a time, which is then removed or replaced.

    Args:
        directory: the server's directory.
        arguments: the arguments to try.
        refusals: the known refusals; their replacements are tried.
        server: runs the server with arguments and `--version`, which exits once all arguments before it are accepted
            (llama.cpp's common/arg.cpp); returns the exit code and the output.
    """
    instead = {refusal.argument: refusal.instead for refusal in refusals}
    found: dict[str, Refused] = {}
    groups = grouped(arguments)
    while True:
        code, output = server(_words(groups))
        error = refused(output) if code else None
        # A repeat is a replacement that fails; a name that was not passed is a value, or a variable of the image.
        if error is None or error.argument in found or all(group[0] != error.argument for group in groups):
            last = (output.strip().splitlines() or [f"exit code {code}"])[-1].strip()
            failure = error.sentence if error else last if code else ""
            return Answer(directory=directory, arguments=arguments, refused=tuple(found.values()), failure=failure)
        found[error.argument] = error
        replacement = instead.get(error.argument, ())
        groups = [
            group for group in (replacement if group[0] == error.argument else group for group in groups) if group
        ]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """An image's answers compared with the known refusals.

    Attributes:
        findings: the problems, a sentence each.
        known: the refusals that are recorded, a sentence each.
    """

    findings: tuple[str, ...]
    known: tuple[str, ...]


def judge(answers: Iterable[Answer], refusals: Sequence[Refusal]) -> Judgement:
    """Returns new refusals and outdated records as findings, and the refusals that are as recorded."""
    findings: list[str] = []
    known: list[str] = []
    recorded = {refusal.argument: refusal for refusal in refusals}
    for answer in answers:
        where = f"{answer.directory}/llama-server"
        for item in answer.refused:
            if refusal := recorded.get(item.argument):
                instead = f"`{' '.join(refusal.instead)}`" if refusal.instead else "nothing"
                known.append(
                    f"{where} refuses {item.argument}, since {refusal.since}: {refusal.because}; instead: {instead}."
                )
            else:
                findings.append(f"{where} refuses {item.argument}, which {NAME} passes: {item.sentence}")
        if answer.failure:
            findings.append(f"{where} does not start with {NAME}'s arguments: {answer.failure}")
        refuses = {item.argument for item in answer.refused}
        findings += [
            f"{where} takes {argument}, which {FILE} records as refused: remove that record."
            for argument in recorded
            if argument in answer.arguments and argument not in refuses and not answer.failure
        ]
    return Judgement(findings=tuple(findings), known=tuple(known))
