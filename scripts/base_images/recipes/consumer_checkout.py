"""A checkout of BodhiApp against our data of it: what its Dockerfiles and its server's file say now."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from base_images.adapters import programs
from base_images.errors import SourceError
from base_images.recipes import consumer, mirror
from base_images.recipes import facts as recipe_facts
from base_images.recipes.consumer import NAME, Answer, Consumer, Dockerfile, Words
from base_images.variants import Variant

_DIRECTORY, _SUFFIX = "devops", ".Dockerfile"
_DEFAULTS_FILE = "/app/defaults.yaml"
_SERVER_FILE = "crates/llama_server_proc/src/server.rs"
_FETCH_SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class Change:
    """What is another in a checkout than in our data.

    Attributes:
        where: the Dockerfiles, or the file, that say it.
        what: the setting or the instruction.
        before: our data's; empty for none.
        after: the checkout's; likewise.
    """

    where: Words
    what: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{', '.join(self.where)}: {self.what}: {self.before or 'none'} → {self.after or 'none'}"


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """What a checkout of BodhiApp says.

    Attributes:
        commit: empty where git does not know.
        server: of `ServerCommand`, what its source file says; empty where there is no such file.
        unreadable: a sentence for each Dockerfile that cannot be read.
    """

    commit: str
    dockerfiles: Mapping[str, Dockerfile]
    server: Mapping[str, str]
    unreadable: tuple[str, ...]


def read(path: Path, known: Consumer) -> Checkout:
    """Returns what a checkout of BodhiApp says: the Dockerfiles that are known, and others on images like ours.

    Raises:
        SourceError: it is none.
    """
    texts = {
        file.name.removesuffix(_SUFFIX): file.read_text(encoding="utf-8", errors="replace")
        for file in sorted((path / _DIRECTORY).glob(f"*{_SUFFIX}"))
    }
    if not texts:
        raise SourceError(f"{path} has no {_DIRECTORY}/*{_SUFFIX}: give --source a checkout of {NAME}.")
    dockerfiles: dict[str, Dockerfile] = {}
    unreadable: list[str] = []
    images = {one.image.rpartition(":")[0] for one in known.dockerfiles.values()}
    for name, text in texts.items():
        if name not in known.dockerfiles and not any(image in text for image in images):
            continue  # such as the one that builds the program
        try:
            dockerfiles[name] = _dockerfile(text, f"{_DIRECTORY}/{name}{_SUFFIX}")
        except SourceError as error:
            unreadable.append(str(error))
    head = programs.git("rev-parse", "HEAD", directory=path)
    return Checkout(
        commit=head.stdout.strip() if head.exit_code == 0 else "",
        dockerfiles=dockerfiles,
        server=_server(path / _SERVER_FILE),
        unreadable=tuple(unreadable),
    )


def _dockerfile(text: str, name: str) -> Dockerfile:
    facts = recipe_facts.read(text, name)
    stages = [value for instruction, value, _ in recipe_facts.instructions(text, name) if instruction == "FROM"]
    last = recipe_facts.stage_name(stages[-1], len(stages) - 1)
    image, instructions, said = "", [], {}
    for fact in (fact for fact in facts if fact.stage == last):
        file, _, setting = fact.name.partition(" ")
        if fact.kind == "from":
            image = fact.value
        elif fact.kind == "file" and file == _DEFAULTS_FILE and setting:
            said[setting] = fact.value
        else:
            instructions.append(str(fact).removeprefix(f"{last}: "))
    return Dockerfile(image=image, instructions=frozenset(instructions), settings=said)


def _server(path: Path) -> dict[str, str]:
    """Returns what the source file that starts the server says: its options, and how often it asks for which path."""
    if not path.is_file():
        return {}
    code = path.read_text(encoding="utf-8", errors="replace").partition("#[cfg(test)]")[0]
    return {
        "options": " ".join(sorted(set(re.findall(r'"(--[a-z][a-z-]*)"', code)))),
        "attempts": " ".join(re.findall(r"max_attempts = (\d+)", code)),
        "health": " ".join(re.findall(r'\{\}(/\w+)", self\.base_url\)', code)),
    }


def changes(known: Consumer, checkout: Checkout) -> tuple[Change, ...]:
    """Returns what a checkout says otherwise than our data, each once, with all the Dockerfiles that say it."""
    where: dict[tuple[str, str, str], list[str]] = {}
    for name in dict.fromkeys((*known.dockerfiles, *checkout.dockerfiles)):
        ours, theirs = known.dockerfiles.get(name), checkout.dockerfiles.get(name)
        if ours is None or theirs is None:
            if not any(f"/{name}{_SUFFIX}" in sentence for sentence in checkout.unreadable):
                there = theirs or ours
                image = f"FROM {there.image}" if there else ""
                where.setdefault(("the Dockerfile", "" if theirs else image, image if theirs else ""), []).append(name)
            continue
        for one in _differences(ours, theirs):
            where.setdefault(one, []).append(name)
    found = [
        Change(where=tuple(names), what=what, before=before, after=after)
        for (what, before, after), names in where.items()
    ]
    server = {
        "options": " ".join(sorted(known.server.options)),
        "attempts": str(known.server.attempts),
        "health": known.server.health,
    }
    found += [
        Change(where=(_SERVER_FILE,), what=what, before=said, after=checkout.server.get(what, ""))
        for what, said in server.items()
        if checkout.server.get(what, "") != said
    ]
    return tuple(found)


def _differences(ours: Dockerfile, theirs: Dockerfile) -> Iterator[tuple[str, str, str]]:
    if ours.image != theirs.image:
        yield "FROM", ours.image, theirs.image
    for name in sorted({*ours.settings, *theirs.settings}):
        before, after = ours.settings.get(name, ""), theirs.settings.get(name, "")
        if before != after:
            yield name, before, after
    gone, new = (
        {line.partition(" = ")[0]: line.partition(" = ")[2] or "there" for line in lines}
        for lines in (ours.instructions - theirs.instructions, theirs.instructions - ours.instructions)
    )
    for subject in sorted({*gone, *new}):
        yield subject, gone.get(subject, ""), new.get(subject, "")


@contextmanager
def newest(repository: str) -> Iterator[Path]:
    """Yields a checkout of a repository's newest commit, as much of it as is read here; it is gone afterwards.

    Raises:
        SourceError: the repository cannot be fetched.
    """
    with tempfile.TemporaryDirectory() as directory:
        clone = [
            "clone",
            "--quiet",
            "--depth=1",
            "--filter=blob:none",
            "--no-checkout",
            "--template=",
            repository,
            directory,
        ]
        files = ["-C", directory, "checkout", "--quiet", "HEAD", "--", _DIRECTORY, _SERVER_FILE]
        for arguments in (clone, files):
            done = programs.git(*arguments, timeout=_FETCH_SECONDS)
            if done.exit_code:
                raise SourceError(
                    f"{repository} cannot be fetched ({done.last_words}): give --source a checkout of {NAME}."
                )
        yield Path(directory)


# The report.


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `check-consumer` saw.

    Attributes:
        data_commit: what our data was read at.
        checkout: what was read; None without one.
        changes: between our data and that.
        image: that was asked; empty for none.
        answers: of its servers.
        findings: what is wrong with the image, a sentence each.
        known: the refusals that are as recorded.
    """

    data_commit: str
    checkout: Checkout | None
    changes: tuple[Change, ...]
    image: str
    answers: tuple[Answer, ...]
    findings: tuple[str, ...]
    known: tuple[str, ...]

    @property
    def unreadable(self) -> tuple[str, ...]:
        """A sentence for each Dockerfile that cannot be read."""
        return self.checkout.unreadable if self.checkout else ()

    @property
    def ok(self) -> bool:
        """Whether BodhiApp is as our data says, and the image takes its arguments."""
        return not (self.changes or self.unreadable or self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Returns it for JSON."""
        return {
            "ok": self.ok,
            "data_commit": self.data_commit,
            "commit": self.checkout.commit if self.checkout else "",
            "changes": [asdict(one) for one in self.changes],
            "unreadable": list(self.unreadable),
            "image": self.image,
            "answers": [asdict(one) for one in self.answers],
            "findings": list(self.findings),
            "known": list(self.known),
        }


def report(
    known: Consumer,
    checkout: Checkout | None,
    *,
    image: str = "",
    variant: Variant | None = None,
    answers: tuple[Answer, ...] = (),
) -> Report:
    """Returns what was seen of a checkout, of an image's answers, or of both."""
    judged = consumer.judge(answers, known.refusals_of(variant.name) if variant else ())
    return Report(
        data_commit=known.commit,
        checkout=checkout,
        changes=changes(known, checkout) if checkout else (),
        image=image,
        answers=answers,
        findings=judged.findings,
        known=judged.known,
    )


def markdown(seen: Report) -> str:
    """Returns a section of a pull request's text: how BodhiApp stands to our data."""
    commit = f" ({seen.checkout.commit[:9]})" if seen.checkout and seen.checkout.commit else ""
    lines = [f"## What {NAME}{commit} does with the images", ""]
    if seen.ok:
        return "\n".join([*lines, f"As {consumer.FILE} says.", ""])
    lines += mirror.bullets(
        f"changed since {seen.data_commit[:9]}, which {consumer.FILE} was read at",
        (
            f"{', '.join(one.where)}: {mirror.code(one.what)}: {_quoted(one.before)} → {_quoted(one.after)}"
            for one in seen.changes
        ),
    )
    lines += mirror.bullets("cannot be read", map(mirror.code, seen.unreadable))
    return "\n".join(lines + mirror.bullets(f"wrong with {seen.image}", map(mirror.code, seen.findings)))


def _quoted(value: str) -> str:
    return mirror.code(value) if value else "none"
