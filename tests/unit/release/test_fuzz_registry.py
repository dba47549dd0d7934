"""A registry whose documents are changed at random: every command ends in an error of ours, never in another.

The seed is fixed, and so is the number of cases; `CASES` may be set to much more by hand.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from base_images import variants, versions
from base_images.adapters import registry
from base_images.adapters.manifest import (
    OCI_INDEX,
    OCI_MANIFEST,
    OddDocumentError,
    digest_of,
    parse_configuration,
    parse_manifest,
    parse_object,
)
from base_images.adapters.registry import Repository, open_repository
from base_images.errors import BaseImagesError
from base_images.release import evidence, promote, record
from base_images.release import status as published
from base_images.release.evidence import Kind
from tests.support.hostile import Hostile, Request, hostile, reply
from tests.support.releases import CPU, labels, release, report

SEED = 13
CASES = 150
PURE_CASES = 3000
RELEASE = release(1)
TAG = versions.image_tag("cpu", RELEASE.version)

DEEP, LONG = "deep", "long"
AS_BYTES = {
    f'"{DEEP}"'.encode(): b"[" * 100_000 + b"]" * 100_000,
    f'"{LONG}"'.encode(): b"9" * 5000,
}
"""What Python would not write as JSON."""

VALUES: tuple[object, ...] = (
    *(None, True, 0, -1, 7, 10**400, 2.5, float("nan"), float("inf"), "", "x", "\ud800", "\x1b[2J", "a" * 5000, [], {}),
    *(
        [None],
        {"a": None},
        {"digest": "sha256:1"},
        DEEP,
        LONG,
        "../../../x",
        f"sha256:{'0' * 64}",
        OCI_INDEX,
        "unknown",
    ),
)

CONFIGURATION = {
    "os": "linux",
    "architecture": "amd64",
    "created": "2025-08-20T14:20:00Z",
    "config": {"Labels": {**labels(CPU, RELEASE), "org.llama.cpp.x": "y"}},
    "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "2" * 64]},
}
REPORT = asdict(
    report(
        "x@y", "linux/amd64", Kind.CONTRACT, variant="cpu", version=RELEASE.version, diff_ids=("sha256:" + "2" * 64,)
    )
)


def nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields the container and the key of every value in a document."""
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(inner, dict | list):
            yield from nodes(inner)


def mutated(dice: random.Random, document: Mapping[str, Any]) -> bytes:
    """Returns a document with one or two values replaced, removed or added, or with bytes changed."""
    changed = copy.deepcopy(dict(document))
    for _ in range(dice.randint(1, 2)):
        if not (places := list(nodes(changed))):
            break
        container, key = dice.choice(places)
        if dice.random() < 0.25:
            del container[key]
        elif dice.random() < 0.1:
            container[key] = [container[key], container[key]]
        else:
            container[key] = dice.choice(VALUES)
    content = json.dumps(changed).encode()
    for text, raw in AS_BYTES.items():
        content = content.replace(text, raw)
    if dice.random() < 0.2:
        begin = dice.randrange(len(content) or 1)
        content = content[:begin] + dice.randbytes(dice.randrange(4)) + content[begin + dice.randrange(9) :]
    return content


@dataclass
class Shelf:
    """The documents of a repository, one of them changed."""

    dice: random.Random
    changed: str
    tags: dict[str, bytes] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.descriptor("configuration", CONFIGURATION, "application/vnd.oci.image.config.v1+json")
        layers = [{"mediaType": "text/plain", "digest": "sha256:" + "1" * 64, "size": 7}]
        image = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers}
        entry = self.descriptor("image", image, OCI_MANIFEST)
        platforms = [{"os": "linux", "architecture": name} for name in ("amd64", "arm64")]
        index = {"mediaType": OCI_INDEX, "manifests": [{**entry, "platform": platform} for platform in platforms]}
        top = self.descriptor("index", index, OCI_INDEX)
        proof = {**image, "layers": [self.descriptor("report", REPORT, "text/plain")], "subject": entry}
        move = {**image, "subject": top}
        for tag in (TAG, "latest-cpu"):
            self.tags[tag] = self.stored[top["digest"]]
        self.tags[f"{entry['digest'].replace(':', '-')}.contract"] = self.content("proof", proof)
        self.tags[f"move-cpu-0001-{RELEASE.version}"] = self.content("move", move)

    def content(self, name: str, document: Mapping[str, Any]) -> bytes:
        return mutated(self.dice, document) if name == self.changed else json.dumps(document).encode()

    def descriptor(self, name: str, document: Mapping[str, Any], media_type: str) -> dict[str, Any]:
        content = self.content(name, document)
        self.stored[digest_of(content)] = content
        return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}

    def answer(self, asked: Request) -> Iterable[bytes]:
        kind, name = asked.path.split("?")[0].split("/")[-2:]
        if kind == "tags":
            return reply(200, self.content("tags", {"name": "x", "tags": [*self.tags]}))
        content = self.tags.get(name) or self.stored.get(name)
        if content is None:
            return reply(404)
        given = {"Content_Type": OCI_INDEX, "Docker_Content_Digest": digest_of(content)}
        return [reply(200, content, **given)[0]] if asked.method == "HEAD" else reply(200, content, **given)


NAMES = ("tags", "index", "image", "configuration", "proof", "report", "move")


def look(repository: Repository) -> object:
    found = published.look(repository, [CPU], RELEASE.version)
    return published.rows(found, datetime.now(UTC)), [one.as_dict() for one in found]


def judge(repository: Repository) -> object:
    return list(promote.promote(repository, CPU, RELEASE.version, RELEASE.commit, dry_run=True))


def go_back(repository: Repository) -> object:
    return list(promote.roll_back(repository, CPU, RELEASE.version, dry_run=True))


def describe(repository: Repository) -> object:
    return [
        (image.size / 1e6, variants.gigabytes(image.size), evidence.KIND_OF_DEVICE, image.arguments)
        for seen in record.look(repository, [CPU], RELEASE.version)
        for image in seen.images
    ]


QUESTIONS: tuple[Callable[[Repository], object], ...] = (look, judge, go_back, describe)


@pytest.fixture
def server() -> Iterator[Hostile]:
    with hostile(lambda _: reply(404)) as running:
        yield running


def test_every_document_of_a_registry_may_be_odd(server: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(registry, "_speaks_tls", lambda _: False)  # one connection less for each case
    for case in range(CASES):
        dice = random.Random(SEED + case)  # noqa: S311 - not a secret
        changed = dice.choice(NAMES)
        server.answer = Shelf(dice, changed).answer
        question = dice.choice(QUESTIONS)
        try:
            said = json.dumps(question(open_repository(f"{server.address}/x", patient=False)), default=str)
        except BaseImagesError as error:
            said = str(error)
        except Exception as error:
            raise AssertionError((case, changed, question)) from error
        assert said.isprintable(), (case, changed, question)


def test_every_document_is_read_or_refused() -> None:
    shelf = Shelf(random.Random(SEED), "nothing")  # noqa: S311
    manifests = [json.loads(content) for content in (*shelf.tags.values(), *shelf.stored.values())]
    read = refused = 0
    for case in range(PURE_CASES):
        dice = random.Random(SEED + case)  # noqa: S311
        content = mutated(dice, dice.choice([*manifests, CONFIGURATION, REPORT]))
        for parse in (lambda content: parse_manifest(content, OCI_MANIFEST), parse_configuration, parse_object):
            try:
                found = parse(content)
            except OddDocumentError:
                refused += 1
                continue
            read += 1
            if not isinstance(found, dict):
                assert found.subject.isascii()
                assert all(digest for _, digest in found.entries)
                assert found.is_index or (found.layers_size / 1e6 >= 0 and found.is_image in {True, False})
    assert read > PURE_CASES / 10
    assert refused > PURE_CASES / 10
