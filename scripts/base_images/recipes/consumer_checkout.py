"""Compares a checkout of BodhiApp, its Dockerfiles and its server's source file, with our data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from base_images.adapters import ownership, programs
from base_images.errors import SourceError
from base_images.recipes import consumer
from base_images.recipes import facts as recipe_facts
from base_images.recipes.consumer import NAME, Answer, Consumer, Dockerfile, Words
from base_images.recipes.instructions import from_arguments, instructions
from base_images.recipes.markdown import bullets, code
from base_images.recipes.markdown import text as escaped
from base_images.variants import Variant

_DIRECTORY, _SUFFIX = "devops", ".Dockerfile"
_DEFAULTS_FILE = "/app/defaults.yaml"
_SERVER_FILE = "crates/llama_server_proc/src/server.rs"
_FETCH_SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class Change:
    """A difference between a checkout and our data.

    Attributes:
        where: the Dockerfiles, or the file, that have it.
        what: the setting or the instruction.
        before: the value in our data; empty for none.
        after: the value in the checkout; empty for none.
    """

    where: Words
    what: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{', '.join(self.where)}: {self.what}: {self.before or 'none'} → {self.after or 'none'}"


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """The state of a checkout of BodhiApp.

    Attributes:
        commit: its commit; empty if it is not a git repository.
        server: the fields of `ServerCommand` that its source file has; empty without that file.
        unreadable: a sentence for each Dockerfile that cannot be read.
    """

    commit: str
    dockerfiles: Mapping[str, Dockerfile]
    server: Mapping[str, str]
    unreadable: tuple[str, ...]


def read(path: Path, known: Consumer) -> Checkout:
    """Reads a checkout of BodhiApp: the known Dockerfiles, and others that start from images of this project.

    Raises:
        SourceError: `path` is not a checkout of BodhiApp, or git refuses to read it.
    """
    texts = {
        file.name.removesuffix(_SUFFIX): file.read_text(encoding="utf-8", errors="replace")
        for file in sorted((path / _DIRECTORY).glob(f"*{_SUFFIX}"))
    }
    if not texts:
        raise SourceError(f"{path} has no {_DIRECTORY}/*{_SUFFIX}: give --source a checkout of {NAME}.")
    dockerfiles: dict[str, Dockerfile] = {}
    unreadable: list[str] = []
    images = {dockerfile.image.rpartition(":")[0] for dockerfile in known.dockerfiles.values()}
    for name, text in texts.items():
        if name not in known.dockerfiles and not any(image in text for image in images):
            continue  # such as the one that builds BodhiApp
        try:
            dockerfiles[name] = _dockerfile(text, f"{_DIRECTORY}/{name}{_SUFFIX}")
        except SourceError as error:
            unreadable.append(str(error))
    head = programs.git("rev-parse", "HEAD", directory=path)
    if head.exit_code and (path / ".git").exists():
        raise SourceError(f"git cannot say which commit {path} is ({head.git_reason}): fix that and run it again.")
    return Checkout(
        commit=head.stdout.strip() if head.exit_code == 0 else "",
        dockerfiles=dockerfiles,
        server=_server(path / _SERVER_FILE),
        unreadable=tuple(unreadable),
    )


def _dockerfile(text: str, name: str) -> Dockerfile:
    facts = recipe_facts.read(text, name)
    stages = [value for instruction, value, _ in instructions(text, name) if instruction == "FROM"]
    if not stages:
        raise SourceError(f"{name} has no FROM.")
    _, last = from_arguments(stages[-1], len(stages) - 1)
    image, lines, values = "", [], {}
    for fact in (fact for fact in facts if fact.stage == last):
        file, _, setting = fact.name.partition(" ")
        if fact.kind == "from":
            image = fact.value
        elif fact.kind == "file" and file == _DEFAULTS_FILE and setting:
            values[setting] = fact.value
        else:
            lines.append(str(fact).removeprefix(f"{last}: "))
    return Dockerfile(image=image, instructions=frozenset(lines), settings=values)


def _server(path: Path) -> dict[str, str]:
    """Returns the options, attempts and health path of the source file that starts the server; empty without it."""
    if not path.is_file():
        return {}
    code = path.read_text(encoding="utf-8", errors="replace").partition("#[cfg(test)]")[0]
    return {
        "options": " ".join(sorted(set(re.findall(r'"(--[a-z][a-z-]*)"', code)))),
        "attempts": " ".join(re.findall(r"max_attempts = (\d+)", code)),
        "health": " ".join(re.findall(r'\{\}(/\w+)", self\.base_url\)', code)),
    }


def changes(known: Consumer, checkout: Checkout) -> tuple[Change, ...]:
    """Returns the differences between our data and a checkout, each once, with all the Dockerfiles that have it."""
    where: dict[tuple[str, str, str], list[str]] = {}
    for name in dict.fromkeys((*known.dockerfiles, *checkout.dockerfiles)):
        ours, theirs = known.dockerfiles.get(name), checkout.dockerfiles.get(name)
        if ours is None or theirs is None:
            if not any(f"/{name}{_SUFFIX}" in sentence for sentence in checkout.unreadable):
                present = theirs or ours
                image = f"FROM {present.image}" if present else ""
                where.setdefault(("the Dockerfile", "" if theirs else image, image if theirs else ""), []).append(name)
            continue
        for difference in _differences(ours, theirs):
            where.setdefault(difference, []).append(name)
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
        Change(where=(_SERVER_FILE,), what=what, before=recorded, after=checkout.server.get(what, ""))
        for what, recorded in server.items()
        if checkout.server.get(what, "") != recorded
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
    """Yields a checkout of a repository's newest commit with the files that `read` needs; removes it afterwards.

    Raises:
        SourceError: the repository cannot be fetched.
    """
    with ownership.temporary_directory() as directory:
        options = ["--quiet", "--depth=1", "--filter=blob:none", "--no-checkout", "--template="]
        clone = ["clone", *options, repository, str(directory)]
        files = ["-C", str(directory), "checkout", "--quiet", "HEAD", "--", _DIRECTORY, _SERVER_FILE]
        for arguments in (clone, files):
            done = programs.git(*arguments, timeout=_FETCH_SECONDS)
            if done.exit_code:
                raise SourceError(
                    f"{repository} cannot be fetched ({done.git_reason}): give --source a checkout of {NAME}."
                )
        yield directory


# The report.


@dataclass(frozen=True, kw_only=True)
class Report:
    """The results of `check-consumer`.

    Attributes:
        data_commit: the commit of BodhiApp that our data records.
        checkout: the checkout that was read, if any.
        changes: the differences between our data and the checkout.
        image: the image that was tested; empty for none.
        answers: the answers of its servers.
        findings: the problems of the image, a sentence each.
        known: the refusals that are as recorded, a sentence each.
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
        """Whether BodhiApp matches our data, and the image accepts its arguments."""
        return not (self.changes or self.unreadable or self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Returns the report for JSON."""
        return {
            "ok": self.ok,
            "data_commit": self.data_commit,
            "commit": self.checkout.commit if self.checkout else "",
            "changes": [asdict(change) for change in self.changes],
            "unreadable": list(self.unreadable),
            "image": self.image,
            "answers": [asdict(answer) for answer in self.answers],
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
    """Returns the report on a checkout, on an image's answers, or on both."""
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


def markdown(result: Report) -> str:
    """Returns a section of a pull request's text: how BodhiApp differs from our data."""
    commit = f" ({result.checkout.commit[:9]})" if result.checkout and result.checkout.commit else ""
    lines = [f"## How {NAME}{commit} uses the images", ""]
    if result.ok:
        return "\n".join([*lines, f"{consumer.FILE} describes it as it is.", ""])
    lines += bullets(
        f"changed since {result.data_commit[:9]}, the commit that {consumer.FILE} describes",
        (
            f"{escaped(', '.join(change.where))}: {code(change.what)}: "
            f"{_quoted(change.before)} → {_quoted(change.after)}"
            for change in result.changes
        ),
    )
    lines += bullets("cannot be read", map(code, result.unreadable))
    return "\n".join(lines + bullets(f"wrong with {result.image}", map(code, result.findings)))


def _quoted(value: str) -> str:
    return code(value) if value else "none"
