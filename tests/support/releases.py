"""Tiny releases for tests of publishing: images, reports, and a clone that publishes them.

The engine, the registry, git and the commands are real.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import git

from base_images import settings, variants, versions
from base_images.adapters.engine import Engine
from base_images.adapters.manifest import OCI_MANIFEST, digest_of
from base_images.adapters.registry import Repository
from base_images.labels import Label
from base_images.release import evidence, promote, publish
from base_images.release import status as published
from base_images.release.actions import Action
from base_images.release.evidence import Evidence, Kind
from base_images.variants import Platform, Variant
from base_images.versions import Foreign, Target, Version
from tests.support import clones, commands
from tests.support.images import archive

CPU = variants.find("cpu")
CUDA = variants.find("cuda")
VULKAN = variants.find("vulkan")
SECONDS = 300
PROVEN = (Kind.CONTRACT, Kind.SMOKE)

_EXIT_0 = {
    # mov x8, 93; mov x0, 0; svc 0, as Linux on arm64 ends a process
    Platform.ARM64: (183, struct.pack("<3I", 0xD2800BA8, 0xD2800000, 0xD4000001)),
    # mov eax, 60; xor edi, edi; syscall, as Linux on amd64 does
    Platform.AMD64: (62, bytes.fromhex("b83c00000031ff0f05")),
}


def program(platform: Platform) -> bytes:
    """Returns a static ELF program for Linux on the platform that ends with 0: real content without a compiler."""
    machine, code = _EXIT_0[platform]
    start, size = 0x400000, 64 + 56 + len(code)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, machine, 1, start + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, start, start, size, size, 4096) + code


@dataclass(frozen=True, kw_only=True)
class Release:
    """A released version."""

    version: Version
    commit: str


def release(minute: int) -> Release:
    """A version, for tests that need no clone."""
    commit = f"{minute:07x}" + "0" * 33
    time_ = datetime(2025, 8, 20, 14, tzinfo=UTC) + timedelta(minutes=minute)
    return Release(version=Version(time=time_, commit=commit[:7]), commit=commit)


def labels(variant: Variant, released: Release, **changed: str) -> dict[str, str]:
    known: dict[str, str] = {
        Label.VARIANT.value: variant.name,
        Label.VERSION.value: str(released.version),
        Label.REVISION.value: released.commit,
        Label.BUILD_ORIGIN.value: "registries",
        Label.LLAMA_CPP_TAG.value: "b11312",
        Label.CREATED.value: "2025-08-20T14:20:00Z",
    }
    return {**known, **{Label[name].value: value for name, value in changed.items()}}


# Images and reports, without an engine.


def push(
    repository: Repository,
    tag: str,
    platform: Platform,
    image_labels: Mapping[str, str],
    diff_ids: Sequence[str] = (),
) -> str:
    """Pushes an image whose layers are missing and returns its digest."""
    configuration = {
        "os": "linux",
        "architecture": platform.architecture,
        "config": {"Labels": image_labels},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    content = json.dumps(configuration).encode()
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": repository.put_blob(content)}
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {**config, "size": len(content)},
        "layers": [],
    }
    return repository.put_manifest(tag, json.dumps(manifest).encode())


def push_all(
    repository: Repository, variant: Variant, released: Release, *, layers: bool = False, **changed: str
) -> str:
    """Publishes a version for all platforms and returns the index's digest; `layers`: each has layers of its own."""
    for platform in variant.platforms:
        tag = versions.platform_tag(variant.name, released.version, platform.architecture)
        diff_ids = [f"sha256:{platform.architecture}"] if layers else []
        push(repository, tag, platform, labels(variant, released, **changed), diff_ids)
    return publish.merge(repository, variant, released.version).digest


def report(
    subject: str,
    platform: str,
    kind: Kind,
    *,
    variant: str,
    version: Version,
    diff_ids: tuple[str, ...] = (),
    ok: bool = True,
) -> Evidence:
    return Evidence(
        kind=kind,
        subject=subject,
        platform=platform,
        variant=variant,
        version=str(version),
        diff_ids=diff_ids,
        made="2025-08-20T15:00:00+00:00",
        ok=ok,
        report={"ok": ok},
    )


def prove(repository: Repository, variant: Variant, released: Release, *kinds: Kind, ok: bool = True) -> None:
    subject = f"{repository.name}@{repository.digest(versions.image_tag(variant.name, released.version))}"
    for platform in variant.platforms:
        for kind in kinds:
            made = report(subject, platform.docker, kind, variant=variant.name, version=released.version, ok=ok)
            evidence.attach(repository, made)


def earn(repository: Repository, *released: Release, variant: Variant = CUDA) -> list[str]:
    """Publishes versions that may become latest, and returns their digests."""
    digests = []
    for one in released:
        digests.append(push_all(repository, variant, one))
        prove(repository, variant, one, *PROVEN)
    return digests


def promoted(repository: Repository, released: Release, variant: Variant = CUDA, *, dry_run: bool = False) -> Action:
    [action] = promote.promote(repository, variant, released.version, released.commit, dry_run=dry_run)
    return action


def rolled_back(repository: Repository, released: Release, variant: Variant = CUDA) -> Action:
    return gone_back(repository, released.version, variant)


def gone_back(repository: Repository, version: Version | Foreign, variant: Variant = CUDA) -> Action:
    [action] = promote.roll_back(repository, variant, version)
    return action


PREDECESSORS = "202512281717-e118046"


def push_foreign(repository: Repository, variant: str, **changed: str) -> str:
    """Makes an image latest as the predecessor of this project did: for amd64 alone, with loose labels."""
    loose: dict[str, str] = {
        Label.VARIANT: variant,
        Label.REVISION: "e118046" + "0" * 33,
        Label.CREATED: "base-images/v2025",
    }
    return push(repository, versions.latest_tag(variant), Platform.AMD64, {**loose, **changed})


def state(repository: Repository) -> dict[str, str | None]:
    """Returns every tag and its digest."""
    return {tag: repository.digest(tag) for tag in repository.tags()}


# A clone, an engine and commands.


@dataclass(frozen=True, kw_only=True)
class Site:
    """A clone of this checkout with a bare remote, and the registry that it publishes to."""

    clone: git.Repo
    repository: Repository
    engine: Engine

    @property
    def here(self) -> Platform:
        return self.engine.platform()

    @property
    def elsewhere(self) -> Platform:
        return next(one for one in Platform if one is not self.here)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        environment = self.environment(**environment)
        return commands.start([*commands.INVOKE, *arguments], cwd=self.clone.working_dir, env=environment)

    def environment(self, **changed: str) -> dict[str, str]:
        # Bytecode is compiled once for all tests, even where that is switched off: the clone belongs to the tests.
        unwanted = {settings.DRY_RUN_VARIABLE, "PYTHONDONTWRITEBYTECODE"}
        inherited = {name: value for name, value in os.environ.items() if name not in unwanted}
        return {**inherited, settings.REGISTRY_VARIABLE: self.repository.name, "COLUMNS": "400", **changed}

    def invoke(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        done = clones.invoke(self.clone, self.environment(**environment), *arguments, timeout=SECONDS)
        assert "Traceback" not in done.stderr
        return done

    def done(self, *arguments: str, **environment: str) -> str:
        done = self.invoke(*arguments, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def refused(self, *arguments: str, code: int = 1) -> str:
        done = self.invoke(*arguments)
        assert done.returncode == code, done.stdout + done.stderr
        return " ".join((done.stdout + done.stderr).split())

    def commit(self, minute: int, *, tagged: bool = True) -> Release:
        """Commits, and releases the commit as `release-base-images` does: an annotated tag at the remote."""
        when = f"2025-08-20T14:{minute:02}:30+0000"
        self.clone.git.commit("--allow-empty", "--message=x", env={"GIT_COMMITTER_DATE": when})
        head = self.clone.head.commit
        version = versions.of_commit(head.hexsha, head.committed_date, dirty=False)
        if tagged:
            self.clone.git.tag("--annotate", "--message=x", version.git_tag)
            self.clone.git.push("--atomic", "origin", "main", version.git_tag)
        return Release(version=version, commit=head.hexsha)

    def local(self, released: Release) -> str:
        return f"{self.repository.name}:{versions.image_tag('cpu', released.version)}"

    def build(self, released: Release, *files: tuple[str, bytes], **changed: str) -> None:
        """Loads an image into the engine as `build-local` does."""
        load(self.local(released), self.here, labels(CPU, released, **changed), *files)

    def push_elsewhere(self, released: Release, target: Target = Target.RUNTIME) -> None:
        """Pushes the other platform's image, as its machine does."""
        tag = versions.platform_tag("cpu", released.version, self.elsewhere.architecture, target)
        reference = f"{self.repository.name}:{tag}"
        load(reference, self.elsewhere, labels(CPU, released))
        docker("push", reference)
        docker("rmi", reference)

    def reports(self, released: Release, directory: Path) -> str:
        """Writes the evidence that `check-image` and `smoke` write for an image that passed."""
        digest = self.done("image-digest", "--variant", "cpu").strip()
        for platform, image in self.repository.platform_manifests(digest).items():
            diff_ids = tuple(self.repository.configuration(image)["rootfs"]["diff_ids"])
            for kind in PROVEN:
                made = report(
                    f"{self.repository.name}@{digest}",
                    platform,
                    kind,
                    variant="cpu",
                    version=released.version,
                    diff_ids=diff_ids,
                )
                evidence.write(made, directory)
        return str(directory)


def docker(*arguments: str, stdin: bytes | None = None) -> bytes:
    return subprocess.run(["docker", *arguments], input=stdin, check=True, capture_output=True, timeout=SECONDS).stdout


def load(reference: str, platform: Platform, image_labels: Mapping[str, str], *files: tuple[str, bytes]) -> None:
    """Loads an image of one layer into the engine: the platform's program, and these files."""
    layer = archive({"app/program": program(platform), "app/of": image_labels[Label.VERSION].encode(), **dict(files)})
    configuration = {
        "os": "linux",
        "architecture": platform.architecture,
        "config": {"Labels": image_labels, "Entrypoint": ["/app/program"]},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(layer)]},
    }
    index = [{"Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"]}]
    documents = {"config.json": configuration, "manifest.json": index}
    parts = {name: json.dumps(document).encode() for name, document in documents.items()}
    docker("load", stdin=archive({**parts, "layer.tar": layer}))


def notes(repository: Repository, variant: Variant = CPU) -> list[str]:
    """Returns check-version's notes on a variant."""
    [one] = published.look(repository, [variant], None)
    return list(one.notes)


def content(repository: Repository, digest: str) -> bytes:
    manifest = repository.manifest(digest)
    assert manifest
    return manifest.content


def first_word(output: str) -> str:
    return output.split(maxsplit=1)[0]


def build_directory(site: Site) -> Path:
    return Path(site.clone.working_dir) / "build/release"


def checked(facts: dict[str, Any]) -> dict[str, Any]:
    """Returns what `check-version --json` prints of the cpu image."""
    [cpu] = [entry for entry in facts["registry"]["variants"] if entry["variant"] == "cpu"]
    return dict(cpu)
