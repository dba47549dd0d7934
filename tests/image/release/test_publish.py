"""Publish, attach, promote, roll back: as a user types it, and killed, raced and starved at every step.

The images are tiny and made here; the engine, the registry, git and the commands are real.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import git
import pytest

from base_images import settings, variants, versions
from base_images.adapters import registry
from base_images.adapters.engine import Engine
from base_images.adapters.registry import OCI_INDEX, OCI_MANIFEST, Repository, open_repository
from base_images.errors import ImageNotFoundError, RegistryError, UsageError
from base_images.labels import Label
from base_images.release import actions, evidence, promote, publish
from base_images.release import status as published
from base_images.release.actions import Action, Outcome
from base_images.release.evidence import Evidence, Kind
from base_images.variants import Platform, Variant
from base_images.versions import Foreign, Version
from tests.support.registries import Registry, Stalling, front, log_in, make_authority, running, small_disk

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


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Iterator[Registry]:
    started = Registry(tmp_path_factory.mktemp("registry"))
    try:
        yield started
    finally:
        started.stop()
        made = engine.images(reference=f"{started.address}/*")
        if made:
            subprocess.run(["docker", "rmi", "--force", *{one.id for one in made}], check=True, capture_output=True)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "PAUSE_SECONDS", 0.01)


@pytest.fixture
def repository(served: Registry, request: pytest.FixtureRequest) -> Repository:
    name = "".join(letter for letter in request.node.name.lower() if letter.isalnum() or letter == "_").strip("_")
    return open_repository(f"{served.address}/{name}")


# Images and reports, without an engine.


def push(repository: Repository, tag: str, platform: Platform, image_labels: Mapping[str, str]) -> str:
    """Pushes an image of no layers and returns its digest."""
    configuration = {"os": "linux", "architecture": platform.architecture, "config": {"Labels": image_labels}}
    content = json.dumps(configuration).encode()
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": repository.put_blob(content)}
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {**config, "size": len(content)},
        "layers": [],
    }
    return repository.put_manifest(tag, json.dumps(manifest).encode())


def push_all(repository: Repository, variant: Variant, released: Release, **changed: str) -> str:
    """Publishes a version for all platforms and returns the index's digest."""
    for platform in variant.platforms:
        tag = versions.platform_tag(variant.name, released.version, platform.architecture)
        push(repository, tag, platform, labels(variant, released, **changed))
    return publish.merge(repository, variant, released.version).digest


def report(subject: str, platform: str, kind: Kind, *, variant: str, version: Version, ok: bool = True) -> Evidence:
    return Evidence(
        kind=kind,
        subject=subject,
        platform=platform,
        variant=variant,
        version=str(version),
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

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "invoke", *arguments]

    def environment(self, **changed: str) -> dict[str, str]:
        # Bytecode is compiled once for all tests, even where that is switched off: the clone belongs to the tests.
        unwanted = {settings.DRY_RUN_VARIABLE, "PYTHONDONTWRITEBYTECODE"}
        inherited = {name: value for name, value in os.environ.items() if name not in unwanted}
        return {**inherited, settings.REGISTRY_VARIABLE: self.repository.name, "COLUMNS": "400", **changed}

    def invoke(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.clone.working_dir,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
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

    def push_elsewhere(self, released: Release) -> None:
        """Pushes the other platform's image, as its machine does."""
        tag = versions.platform_tag("cpu", released.version, self.elsewhere.architecture)
        reference = f"{self.repository.name}:{tag}"
        load(reference, self.elsewhere, labels(CPU, released))
        docker("push", reference)
        docker("rmi", reference)

    def reports(self, released: Release, directory: Path) -> str:
        """Writes the evidence that `check-image` and `smoke` write for an image that passed."""
        subject = f"{self.repository.name}@{self.done('image-digest', '--variant', 'cpu').strip()}"
        for platform in CPU.platforms:
            for kind in PROVEN:
                evidence.write(
                    report(subject, platform.docker, kind, variant="cpu", version=released.version), directory
                )
        return str(directory)


def docker(*arguments: str, stdin: bytes | None = None) -> bytes:
    return subprocess.run(["docker", *arguments], input=stdin, check=True, capture_output=True, timeout=SECONDS).stdout


def load(reference: str, platform: Platform, image_labels: Mapping[str, str], *files: tuple[str, bytes]) -> None:
    """Loads an image of one layer into the engine: the platform's program, and these files."""
    layer = archive(("app/program", program(platform)), ("app/of", image_labels[Label.VERSION].encode()), *files)
    configuration = {
        "os": "linux",
        "architecture": platform.architecture,
        "config": {"Labels": image_labels, "Entrypoint": ["/app/program"]},
        "rootfs": {"type": "layers", "diff_ids": [registry._digest(layer)]},
    }
    index = [{"Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"]}]
    parts = [("config.json", json.dumps(configuration).encode()), ("layer.tar", layer)]
    docker("load", stdin=archive(*parts, ("manifest.json", json.dumps(index).encode())))


def archive(*files: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[git.Repo]:
    directory = tmp_path_factory.mktemp("clone")
    root = directory / "clone"
    shutil.copytree(settings.ROOT / "scripts", root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(settings.ROOT / "dockerfiles", root / "dockerfiles")
    for name in ("tasks.py", "pyproject.toml", ".gitignore"):
        shutil.copy(settings.ROOT / name, root)
    configuration = directory / "gitconfig"
    configuration.write_text("[user]\n\tname = A\n\temail = a@example.org\n[init]\n\tdefaultBranch = main\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_GLOBAL", str(configuration))
        with git.Repo.init(directory / "remote.git", bare=True), git.Repo.init(root) as made:
            made.git.add("--all")
            made.git.commit("--quiet", "--message=Everything")
            made.git.remote("add", "origin", str(directory / "remote.git"))
            yield made


@pytest.fixture
def site(clone: git.Repo, repository: Repository, engine: Engine) -> Iterator[Site]:
    """A clean clone without releases; each test adds commits to its history."""
    yield Site(clone=clone, repository=repository, engine=engine)
    clone.git.clean("-fdx", "--quiet", "--exclude=__pycache__")
    for tag in clone.tags:
        clone.delete_tag(tag)


def first_word(output: str) -> str:
    return output.split(maxsplit=1)[0]


def test_platforms_are_published_separately_and_merged_into_one_image(site: Site) -> None:
    repository = site.repository
    one = site.commit(1)
    site.build(one)
    anchor = versions.platform_tag("cpu", one.version, site.here.architecture)
    index = versions.image_tag("cpu", one.version)

    assert "would" in site.invoke("publish", "--variant", "cpu", "--dry-run").stdout
    assert state(repository) == {}
    waiting = site.refused("publish", "--variant", "cpu")
    assert f"{site.elsewhere.docker} is missing: run `invoke build-local --variant cpu`" in waiting
    assert set(state(repository)) == {anchor}
    site.push_elsewhere(one)
    before = state(repository)
    assert first_word(site.done("publish", "--variant", "cpu", BASE_IMAGES_DRY_RUN="true")) == Outcome.WOULD
    assert state(repository) == before
    assert first_word(site.done("publish", "--variant", "cpu")) == Outcome.DONE
    published = state(repository)
    assert published == {**before, index: published[index]}
    assert first_word(site.done("publish", "--variant", "cpu")) == Outcome.ALREADY
    assert first_word(site.done("publish", "--variant", "cpu", "--dry-run")) == Outcome.ALREADY
    assert state(repository) == published
    assert site.done("image-digest", "--variant", "cpu").strip() == published[index]


def test_promotion_depends_on_the_attached_reports(site: Site, tmp_path: Path) -> None:
    repository = site.repository
    one = site.commit(1)
    site.build(one)
    site.push_elsewhere(one)
    site.done("publish", "--variant", "cpu")
    published = state(repository)

    # A tiny image breaks the contract, and its report says so.
    found = site.refused("check-image", site.local(one), "--record", str(tmp_path / "failed"))
    assert "llama-server" in found
    site.done("attach-reports", str(tmp_path / "failed"))
    failed = site.refused("promote", "--variant", "cpu")
    assert f"{site.here.docker}: its report contract says that it failed" in failed
    assert f"{site.elsewhere.docker}: no contract report is attached" in failed
    directory = site.reports(one, tmp_path / "passed")
    before = state(repository)
    site.done("attach-reports", directory, "--dry-run")
    assert state(repository) == before
    site.done("attach-reports", directory)
    attached = state(repository)
    assert len(attached) == len(published) + len(CPU.platforms) * len(PROVEN)
    site.done("attach-reports", directory)
    assert state(repository) == attached
    site.done("promote", "--variant", "cpu")
    assert repository.digest("latest-cpu") == published[versions.image_tag("cpu", one.version)]


def test_two_promotions_and_a_rollback(site: Site) -> None:
    repository = site.repository
    one, two = site.commit(1), site.commit(2)
    [first] = earn(repository, one, variant=CPU)

    before = state(repository)
    first_promotion = ("promote", "--version", str(one.version), "--variant", "cpu")
    assert first_word(site.done(*first_promotion, "--dry-run")) == Outcome.WOULD
    assert state(repository) == before
    assert first_word(site.done(*first_promotion)) == Outcome.DONE
    assert repository.digest("latest-cpu") == first
    before = state(repository)
    assert first_word(site.done(*first_promotion)) == Outcome.ALREADY
    assert state(repository) == before

    [second] = earn(repository, two, variant=CPU)
    assert f"lags: {two.version} is published and not promoted" in notes(repository)
    site.done("promote", "--variant", "cpu")
    assert repository.digest("latest-cpu") == second
    assert notes(repository) == []
    older = site.refused(*first_promotion)
    assert f"{two.version} is latest and newer: `invoke rollback --variant cpu --to {one.version}`" in older

    before = state(repository)
    back = ("rollback", "--variant", "cpu", "--to", str(one.version))
    assert first_word(site.done(*back, "--dry-run")) == Outcome.WOULD
    assert state(repository) == before
    assert first_word(site.done(*back)) == Outcome.DONE
    assert repository.digest("latest-cpu") == first
    assert first_word(site.done(*back)) == Outcome.ALREADY
    assert "it was latest before and was rolled back" in site.refused("promote", "--variant", "cpu")
    recorded = [json.loads(line) for line in (build_directory(site) / "promote.jsonl").read_text().splitlines()]
    outcomes = [Outcome.WOULD, Outcome.DONE, Outcome.ALREADY, Outcome.DONE, Outcome.REFUSED, Outcome.REFUSED]
    assert [line["outcome"] for line in recorded] == outcomes
    assert [line["digest"] for line in recorded] == ["", first, first, second, "", ""]


def test_check_version_shows_the_registrys_state(site: Site) -> None:
    one, two = site.commit(1), site.commit(2)
    repository = site.repository
    first, second = earn(repository, one, two, variant=CPU)
    assert notes(repository) == ["published and never promoted"]
    promoted(repository, one, CPU)
    promoted(repository, two, CPU)
    rolled_back(repository, one, CPU)
    cpu = checked(json.loads(site.done("check-version", "--json")))
    assert (cpu["latest"]["version"], cpu["newest"]["version"]) == (str(one.version), str(two.version))
    assert (cpu["latest"]["digest"], cpu["newest"]["digest"]) == (first, second)
    assert cpu["latest"]["llama_cpp"] == "b11312"
    assert cpu["notes"] == [f"rolled back to {one.version}"]
    assert cpu["before"] == str(two.version)


def notes(repository: Repository, variant: Variant = CPU) -> list[str]:
    """Returns check-version's notes on a variant."""
    [one] = published.look(repository, [variant], None)
    return list(one.notes)


def build_directory(site: Site) -> Path:
    return Path(site.clone.working_dir) / "build/release"


def test_each_platform_gets_its_own_files(site: Site) -> None:
    """Both have real content and nothing is emulated: pulled files are inspected and not run."""
    one = site.commit(1)
    site.build(one)
    site.push_elsewhere(one)
    site.done("publish", "--variant", "cpu")
    docker("rmi", site.local(one))
    for platform in Platform:
        docker("pull", "--platform", platform.docker, site.local(one))
        container = docker("create", "--platform", platform.docker, site.local(one)).decode().strip()
        try:
            with tarfile.open(fileobj=io.BytesIO(docker("cp", f"{container}:/app/program", "-"))) as tar:
                content = tar.extractfile("program")
                assert content
                assert content.read() == program(platform)
        finally:
            docker("rm", container)
        docker("rmi", site.local(one))


def test_the_whole_way_through_tls_and_a_password(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine and the commands read both from docker's configuration, and print neither."""
    authority = make_authority(tmp_path / "authority")
    served = Registry(tmp_path / "registry", password=True, tls=authority)
    try:
        log_in(tmp_path, served.address)
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.authority))
        behind = dataclasses.replace(site, repository=open_repository(f"{served.address}/x"))
        one = behind.commit(1)
        behind.build(one)
        behind.push_elsewhere(one)
        behind.done("publish", "--variant", "cpu")
        behind.done("attach-reports", behind.reports(one, tmp_path / "reports"))
        behind.done("promote", "--variant", "cpu")
        index = behind.repository.digest(versions.image_tag("cpu", one.version))
        assert behind.repository.digest("latest-cpu") == index
        docker("rmi", behind.local(one))
        log_in(tmp_path, served.address, password="wrong")  # noqa: S106
        assert "log in with `docker login" in behind.refused("publish", "--variant", "cpu")
    finally:
        served.stop()


def test_an_unreleased_commit_is_not_published(site: Site) -> None:
    one = site.commit(1, tagged=False)
    assert f"{one.version} is not released, so it cannot be published" in site.refused("publish", code=2)
    site.clone.git.tag("--annotate", "--message=x", one.version.git_tag)
    (Path(site.clone.working_dir) / "new").touch()
    assert f"{one.version}-dirty is not released" in site.refused("publish", code=2)
    assert state(site.repository) == {}


def test_only_images_built_from_the_commit_are_published(site: Site) -> None:
    one = release(1)

    def publishing() -> Action:
        [action, *_] = publish.publish(
            site.repository, CPU, version=one.version, commit=one.commit, connect=lambda: site.engine
        )
        return action

    with pytest.raises(
        ImageNotFoundError, match=r"This engine has no .*: build it with `invoke build-local --variant cpu`"
    ):
        publishing()
    for changed, told in (
        ({"REVISION": "f" * 40}, "its label org.opencontainers.image.revision is 'fff"),
        ({"VERSION": f"{one.version}-dirty"}, "-dirty' and not '"),
        ({"VARIANT": "cuda"}, "its label bodhi.variant is 'cuda' and not 'cpu'"),
    ):
        site.build(one, **changed)
        with pytest.raises(RegistryError, match=f"cannot be published: .*{told}"):
            publishing()
        assert state(site.repository) == {}
    from_packages = labels(CPU, one, BUILD_ORIGIN="packages")
    publish.require_publishable(
        from_packages, variant=CPU, version=one.version, commit=one.commit, target=site.repository.name
    )
    with pytest.raises(RegistryError, match=r"its bases are from 'packages'.*build it with `--origin registries`"):
        publish.require_publishable(
            from_packages, variant=CPU, version=one.version, commit=one.commit, target="ghcr.io/x/y:cpu-1"
        )


# Indexes.


def test_a_published_version_never_changes(repository: Repository) -> None:
    one = release(1)
    digest = push_all(repository, CUDA, one)
    assert publish.merge(repository, CUDA, one.version).outcome is Outcome.ALREADY
    tag = versions.image_tag("cuda", one.version)
    other = push(repository, tag, Platform.AMD64, labels(CUDA, one))
    assert other != digest
    with pytest.raises(RegistryError, match=rf"{tag} is published already and is another image \({other}\)"):
        publish.merge(repository, CUDA, one.version)
    assert repository.digest(tag) == other


def test_the_same_images_make_the_same_index(repository: Repository, served: Registry) -> None:
    again = open_repository(f"{served.address}/again")
    assert push_all(repository, CPU, release(1)) == push_all(again, CPU, release(1))


def test_an_image_for_another_platform_than_its_tag_says_is_not_merged(repository: Repository) -> None:
    one = release(1)
    for platform in CPU.platforms:
        tag = versions.platform_tag("cpu", one.version, platform.architecture)
        push(repository, tag, Platform.AMD64, labels(CPU, one))
    with pytest.raises(RegistryError, match=r"-arm64 is not an image for linux/arm64 alone"):
        publish.merge(repository, CPU, one.version)
    assert repository.digest(versions.image_tag("cpu", one.version)) is None


def test_attestations_stay_with_their_image(repository: Repository) -> None:
    """BuildKit pushes an index of the image and its attestations, also for one platform."""
    one = release(1)
    attested = []
    for platform in CPU.platforms:
        tag = versions.platform_tag("cpu", one.version, platform.architecture)
        entries = []
        for name, described in (("", platform.architecture), ("statement", "unknown")):
            digest = push(repository, f"{tag}{name}", platform, {**labels(CPU, one), "x": name})
            manifest = repository.manifest(digest)
            assert manifest
            entry = {"mediaType": OCI_MANIFEST, "digest": digest, "size": len(manifest.content)}
            os_ = "unknown" if name else "linux"
            entries.append({**entry, "platform": {"os": os_, "architecture": described}})
        entries[1]["annotations"] = {
            "vnd.docker.reference.digest": entries[0]["digest"],
            "vnd.docker.reference.type": "attestation-manifest",
        }
        attested += entries
        content = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        repository.put_manifest(tag, json.dumps(content).encode())
    publish.merge(repository, CPU, one.version)
    index = repository.manifest(versions.image_tag("cpu", one.version))
    assert index
    assert index.document["manifests"] == attested
    assert set(repository.platform_manifests(index.digest)) == {"linux/amd64", "linux/arm64"}
    prove(repository, CPU, one, *PROVEN)
    assert promoted(repository, one, CPU).digest == index.digest


# What `promote` and `rollback` refuse.


def test_a_version_without_its_reports_is_not_promoted(repository: Repository) -> None:
    one = release(1)
    push_all(repository, CUDA, one)
    reasons = []
    for kind in (None, *PROVEN):
        if kind:
            prove(repository, CUDA, one, kind)
        action = promoted(repository, one)
        reasons.append(action.reason.splitlines())
        assert action.ok is (kind is PROVEN[-1])
    assert [len(reason) for reason in reasons] == [2, 1, 1]
    assert "no contract report" in reasons[0][0]
    assert "no smoke report" in reasons[1][0]
    two = release(2)
    push_all(repository, CUDA, two)
    prove(repository, CUDA, two, *PROVEN)
    prove(repository, CUDA, two, Kind.SMOKE, ok=False)
    before = state(repository)
    assert "smoke says that it failed" in promoted(repository, two).reason
    assert state(repository) == before
    prove(repository, CUDA, two, Kind.SMOKE)
    assert promoted(repository, two).outcome is Outcome.DONE


def test_promotion_requires_a_device_unless_the_variant_has_a_waiver(repository: Repository) -> None:
    one = release(1)
    push_all(repository, VULKAN, one)
    prove(repository, VULKAN, one, *PROVEN)
    assert "smoke-tested without a device" in promoted(repository, one, VULKAN).reason
    assert repository.digest("latest-vulkan") is None
    prove(repository, VULKAN, one, Kind.SMOKE_ON_SOFTWARE_DEVICE)
    assert promoted(repository, one, VULKAN).outcome is Outcome.DONE


def test_fewer_platforms_than_the_table_has_are_not_promoted(repository: Repository) -> None:
    one = release(1)
    push(repository, versions.image_tag("cpu", one.version), Platform.AMD64, labels(CPU, one))
    assert "linux/arm64 is missing" in promoted(repository, one, CPU).reason
    assert repository.digest("latest-cpu") is None


def test_an_image_of_another_commit_is_not_promoted(repository: Repository) -> None:
    one, two = release(1), release(2)
    earn(repository, one)
    push_all(repository, CUDA, two, REVISION=one.commit)
    prove(repository, CUDA, two, *PROVEN)
    refused = promoted(repository, two)
    assert refused.outcome is Outcome.REFUSED
    assert f"revision is '{one.commit}' and not '{two.commit}'" in refused.reason
    [unreleased] = promote.promote(repository, CUDA, one.version, None)
    assert "no tag base-images/v" in unreleased.reason
    assert repository.digest("latest-cuda") is None


def test_a_report_of_another_image_is_refused(repository: Repository) -> None:
    one, two = release(1), release(2)
    earn(repository, one)
    push_all(repository, CUDA, two)
    [old] = repository.platform_manifests(versions.image_tag("cuda", one.version)).values()
    [new] = repository.platform_manifests(versions.image_tag("cuda", two.version)).values()
    for kind in PROVEN:
        manifest = repository.manifest(f"{old.digest.replace(':', '-')}.{kind}")
        assert manifest
        repository.put_manifest(f"{new.digest.replace(':', '-')}.{kind}", manifest.content)
    with pytest.raises(RegistryError, match="is of another image, or of another kind"):
        promoted(repository, two)


def test_a_rollback_is_possible_only_to_a_former_latest(repository: Repository) -> None:
    one, two, three = release(1), release(2), release(3)
    first, second, third = earn(repository, one, two, three)
    assert "was never latest, only what was can be gone back to: none." in rolled_back(repository, one).reason
    for released in (one, three):
        assert promoted(repository, released).outcome is Outcome.DONE
    assert f"gone back to: {one.version}, {three.version}." in rolled_back(repository, two).reason
    assert promoted(repository, two).outcome is Outcome.REFUSED
    assert repository.digest("latest-cuda") == third
    assert rolled_back(repository, one).digest == repository.digest("latest-cuda") == first
    assert "was rolled back" in promoted(repository, three).reason
    # The fix that follows a rollback.
    assert promoted(repository, two).digest == repository.digest("latest-cuda") == second
    assert rolled_back(repository, three).digest == repository.digest("latest-cuda") == third
    # Other variants are unaffected.
    assert {tag for tag in repository.tags() if tag.startswith("latest-")} == {"latest-cuda"}


def test_a_changed_latest_image_is_reported(repository: Repository) -> None:
    one = release(1)
    [digest] = earn(repository, one)
    promoted(repository, one)
    found = repository.manifest(digest)
    assert found
    tag = versions.image_tag("cuda", one.version)
    other = repository.put_manifest(tag, json.dumps({**found.document, "annotations": {"x": "y"}}).encode())
    refused = promoted(repository, one)
    assert refused.outcome is Outcome.REFUSED
    assert f"made latest as {digest} and is {other} now" in refused.reason
    assert repository.digest("latest-cuda") == digest


def test_a_tag_moved_by_hand_is_reported_and_moved_back(repository: Repository) -> None:
    one, two = release(1), release(2)
    first, second = earn(repository, one, two)
    promoted(repository, one)
    found = repository.manifest(second)
    assert found
    repository.point("latest-cuda", found.content)
    [note] = notes(repository, CUDA)
    assert note.startswith(f"latest-cuda is not {one.version}, which was made latest")
    assert promoted(repository, one).outcome is Outcome.DONE
    assert repository.digest("latest-cuda") == first


def test_an_older_commit_is_refused_and_a_future_date_reported(site: Site) -> None:
    """A commit dated before the latest one, and an image created in the future."""
    repository = site.repository
    now, before = release(20), release(10)
    [digest, _] = earn(repository, now, before)
    promoted(repository, now)
    assert "is latest and newer" in promoted(repository, before).reason
    assert repository.digest("latest-cuda") == digest
    future = release(30)
    push_all(repository, CUDA, future, CREATED="2199-01-01T00:00:00Z")
    assert "in the future: one of the" in site.done("check-version")


# Rollback to what was latest before the first promotion.


def test_a_rollback_to_the_predecessors_latest(site: Site) -> None:
    repository = site.repository
    one, two = site.commit(1), site.commit(2)
    site.clone.git.tag(f"base-images/v{PREDECESSORS}", one.commit)
    there = push_foreign(repository, "cpu", **{Label.VERSION: PREDECESSORS})
    repository.put_manifest(f"cpu-{PREDECESSORS}", content(repository, there))

    facts = json.loads(site.done("check-version", "--json"))
    assert facts["newest_release"] == str(two.version)
    cpu = checked(facts)
    assert (cpu["latest"]["version"], cpu["newest"], cpu["before"]) == (PREDECESSORS, None, "")
    first, second = earn(repository, one, two, variant=CPU)
    promotion = ("promote", "--variant", "cpu", "--version", str(one.version))
    before = state(repository)
    assert first_word(site.done(*promotion, "--dry-run")) == Outcome.WOULD
    assert state(repository) == before
    assert first_word(site.done(*promotion)) == Outcome.DONE
    assert repository.digest("latest-cpu") == first
    record = f"move-cpu-0000-{PREDECESSORS}"
    assert set(state(repository)) - set(before) == {record, f"move-cpu-0001-{one.version}"}
    manifest = repository.manifest(record)
    assert manifest
    told = json.loads(repository.blob(manifest.document["layers"][0]["digest"]))
    assert {**told, "at": "", "by": ""} == {
        "variant": "cpu",
        "version": PREDECESSORS,
        "rollback": False,
        "digest": there,
        "before": "",
        "by": "",
        "at": "",
    }
    assert told["by"]
    assert datetime.fromisoformat(told["at"]).tzinfo
    assert f"latest before: {PREDECESSORS}" in site.done("check-version")

    back = ("rollback", "--variant", "cpu", "--to", PREDECESSORS)
    before = state(repository)
    what = f"to {there} (latest before the first promotion; not for linux/arm64)"
    assert what in site.done(*back, "--dry-run")
    assert state(repository) == before
    done = site.done(*back)
    assert f"{PREDECESSORS} (latest before the first promotion; not for linux/arm64), before: {first}" in done
    assert repository.digest("latest-cpu") == there
    assert first_word(site.done(*back)) == Outcome.ALREADY
    cpu = checked(json.loads(site.done("check-version", "--json")))
    assert (cpu["latest"]["version"], cpu["before"]) == (PREDECESSORS, str(one.version))
    assert cpu["newest"]["version"] == str(two.version)
    assert cpu["notes"] == [f"rolled back to {PREDECESSORS}"]
    assert "it was latest before and was rolled back" in site.refused(*promotion)
    never = site.refused("rollback", "--variant", "cpu", "--to", str(two.version))
    assert f"only what was can be gone back to: {PREDECESSORS}, {one.version}." in never
    assert "write a version" in site.refused("rollback", "--variant", "cpu", "--to", there[:19], code=2)

    site.done("promote", "--variant", "cpu")
    assert repository.digest("latest-cpu") == second
    assert notes(repository) == []
    assert gone_back(repository, Foreign(name=there), CPU).digest == there
    assert promote.moves(repository.tags(), "cpu")[-1].version == Foreign(name=PREDECESSORS)


def checked(facts: dict[str, Any]) -> dict[str, Any]:
    """Returns what `check-version --json` prints of the cpu image."""
    [cpu] = [entry for entry in facts["registry"]["variants"] if entry["variant"] == "cpu"]
    return dict(cpu)


def content(repository: Repository, digest: str) -> bytes:
    manifest = repository.manifest(digest)
    assert manifest
    return manifest.content


UNBELIEVED = {
    "none": {},
    "nothing": {Label.VERSION: ""},
    "another grammar": {Label.VERSION: "v1.2"},
    "a digest": {Label.VERSION: "sha256:" + "0f" * 32},
    "a version that nobody published": {Label.VERSION: "9912312359-abc1234"},
    "a version of changes": {Label.VERSION: "2508201420-abc1234-dirty"},
    "the version of another image": {Label.VERSION: str(release(1).version)},
    "the predecessor's of another image": {Label.VERSION: PREDECESSORS},
}


@pytest.mark.parametrize("name", UNBELIEVED)
def test_a_rollback_by_digest_to_an_image_without_a_version(repository: Repository, name: str) -> None:
    one = release(1)
    there = push_foreign(repository, "cuda", **UNBELIEVED[name])
    push(repository, f"cuda-{PREDECESSORS}", Platform.AMD64, {"another": "image"})
    [first] = earn(repository, one)
    before = state(repository)
    assert promoted(repository, one).digest == repository.digest("latest-cuda") == first
    hexadecimal = there.removeprefix("sha256:")
    added = {f"cuda-sha256-{hexadecimal}", f"move-cuda-0000-sha256-{hexadecimal}", f"move-cuda-0001-{one.version}"}
    assert set(state(repository)) - set(before) == added
    assert repository.digest(f"cuda-sha256-{hexadecimal}") == there
    [seen] = published.look(repository, [CUDA], None)
    assert seen.before == there
    row, *_ = published.rows([seen], datetime.now(UTC))
    assert row[-1] == f"latest before: {there[:19]}"
    assert gone_back(repository, Foreign(name=there)).digest == repository.digest("latest-cuda") == there
    assert notes(repository, CUDA) == [f"rolled back to {there}"]
    assert f"gone back to: {one.version}, {there}." in gone_back(repository, Foreign(name=PREDECESSORS)).reason


def test_a_rollback_to_an_artifact_that_is_no_image(repository: Repository) -> None:
    """Such as one that was pushed under the wrong tag."""
    subject = content(repository, push(repository, "x", Platform.AMD64, {}))
    manifest = registry.Manifest(digest=registry._digest(subject), media_type=OCI_MANIFEST, content=subject)
    artifact = evidence.store_document(repository, manifest, "application/x", b"{}")
    there = repository.put_manifest("latest-cuda", artifact)
    [first] = earn(repository, release(1))
    assert promoted(repository, release(1)).digest == first
    assert gone_back(repository, Foreign(name=there)).digest == repository.digest("latest-cuda") == there
    assert published.look(repository, [CUDA], None)


def test_a_rollback_to_a_version_that_was_made_latest_by_hand(repository: Repository) -> None:
    one, two = release(1), release(2)
    first, second = earn(repository, one, two)
    repository.put_manifest("latest-cuda", content(repository, first))
    assert promoted(repository, two).digest == second
    assert {tag for tag in repository.tags() if tag.startswith("move-")} == {
        f"move-cuda-0000-{one.version}",
        f"move-cuda-0001-{two.version}",
    }
    assert rolled_back(repository, one).digest == repository.digest("latest-cuda") == first
    by_hand = open_repository(f"{repository.name}-by-hand")
    first, second = earn(by_hand, one, two)
    by_hand.put_manifest("latest-cuda", content(by_hand, second))
    assert f"{two.version} is latest and newer" in promoted(by_hand, one).reason
    assert promoted(by_hand, two).outcome is Outcome.DONE
    assert [move.number for move in promote.moves(by_hand.tags(), "cuda")] == [1], "it is what was there"


def test_a_rollback_to_an_image_of_several_platforms(repository: Repository) -> None:
    """Its name comes from its images' labels, and it keeps all of them."""
    there = {}
    for number, tag in enumerate((f"cpu-{PREDECESSORS}", "latest-cpu")):
        entries = []
        for platform in CPU.platforms:
            image = push(repository, "x", platform, {Label.VERSION: PREDECESSORS, "number": str(number)})
            described = {"os": "linux", "architecture": platform.architecture}
            size = len(content(repository, image))
            entries.append({"mediaType": OCI_MANIFEST, "digest": image, "size": size, "platform": described})
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        there[tag] = repository.put_manifest(tag, json.dumps(index).encode())
    one = release(1)
    earn(repository, one, variant=CPU)
    promoted(repository, one, CPU)
    # Two images have the same version label: the one with the tag has the name.
    done = gone_back(repository, Foreign(name=there["latest-cpu"]), CPU)
    assert done.reason.startswith(f"{there['latest-cpu']} (latest before the first promotion), before:")
    assert repository.digest("latest-cpu") == there["latest-cpu"]
    assert "was never latest" in gone_back(repository, Foreign(name=there[f"cpu-{PREDECESSORS}"]), CPU).reason


def test_a_rollback_survives_garbage_collection(tmp_path: Path) -> None:
    served = Registry(tmp_path / "registry")
    try:
        repository = open_repository(f"{served.address}/x")
        one = release(1)
        named, nameless = (
            push_foreign(repository, variant, **label)
            for variant, label in (("cuda", {Label.VERSION: PREDECESSORS}), ("rocm", {}))
        )
        rocm = variants.find("rocm")
        earn(repository, one)
        earn(repository, one, variant=rocm)
        assert promoted(repository, one).ok
        assert promoted(repository, one, rocm).ok
        served.stop()
        collect = ["docker-registry", "garbage-collect", "--delete-untagged", str(served.configuration)]
        subprocess.run(collect, check=True, capture_output=True, timeout=SECONDS)
        served.start()
        assert gone_back(repository, Foreign(name=PREDECESSORS)).digest == repository.digest("latest-cuda") == named
        back = gone_back(repository, Foreign(name=nameless), rocm)
        assert back.digest == repository.digest("latest-rocm") == nameless
        assert repository.platform_manifests("latest-rocm")
    finally:
        served.stop()


LATER = "202601010000-e118046"
CUT = {
    f"cuda-{PREDECESSORS}": [LATER],
    "move-cuda-0000-": [LATER],
    "move-cuda-0001-": [PREDECESSORS, LATER],
    "latest-cuda": [PREDECESSORS],
}
"""What a first promotion writes, in order, and what is kept if the predecessor publishes concurrently."""


@pytest.mark.parametrize("meanwhile", [False, True])
@pytest.mark.parametrize("cut", CUT)
def test_a_first_promotion_interrupted_at_any_step_is_finished_by_the_next(
    repository: Repository, served: Registry, cut: str, *, meanwhile: bool
) -> None:
    """The same command again finishes."""
    one = release(1)
    there = {PREDECESSORS: push_foreign(repository, "cuda", **{Label.VERSION: PREDECESSORS})}
    [first] = earn(repository, one)
    cut_off(repository, served, cut, one)
    assert repository.digest("latest-cuda") == there[PREDECESSORS]
    if meanwhile:
        there[LATER] = push_foreign(repository, "cuda", **{Label.VERSION: LATER})
    [note] = notes(repository, CUDA)
    was_made = f"latest-cuda is not {one.version}, which was made latest"
    assert note.startswith(was_made if cut == "latest-cuda" else f"lags: {one.version} is published and not promoted")
    assert promoted(repository, one).outcome is Outcome.DONE
    assert repository.digest("latest-cuda") == first
    *kept, last = promote.moves(repository.tags(), "cuda")
    assert (last.number, last.version) == (1, one.version)
    assert [(move.number, str(move.version)) for move in kept] == [
        (0, name) for name in (CUT[cut] if meanwhile else [PREDECESSORS])
    ]
    for move in kept:
        back = gone_back(repository, move.version)
        assert back.digest == repository.digest("latest-cuda") == there[str(move.version)]


def cut_off(repository: Repository, served: Registry, cut: str, released: Release) -> None:
    """Promotes through a registry that refuses tags with this prefix."""

    def refuse(method: str, path: str) -> int | None:
        return 503 if method == "PUT" and path.rpartition("/")[2].startswith(cut) else None

    with front(served.address, refuse) as address, pytest.raises(RegistryError, match=r"HTTP status 503"):
        promoted(open_repository(repository.name.replace(served.address, address)), released)


def test_a_rollback_after_an_interrupted_first_promotion(repository: Repository, served: Registry) -> None:
    """The kept record is no move yet: the rollback is the first."""
    one, two = release(1), release(2)
    there = push_foreign(repository, "cuda", **{Label.VERSION: PREDECESSORS})
    _, second = earn(repository, one, two)
    cut_off(repository, served, "move-cuda-0001-", one)
    push_foreign(repository, "cuda", **{Label.VERSION: LATER})
    assert gone_back(repository, Foreign(name=PREDECESSORS)).digest == repository.digest("latest-cuda") == there
    assert promote.moves(repository.tags(), "cuda")[-1].tag == f"move-cuda-0001-{PREDECESSORS}-rollback"
    assert promoted(repository, two).digest == repository.digest("latest-cuda") == second


@pytest.mark.parametrize(
    "at", ["manifests/latest-cuda", "tags/list", "manifests/move-cuda-0000", "manifests/move-cuda-0001"]
)
def test_a_concurrent_first_promotion_is_not_recorded_as_the_predecessor(
    repository: Repository, served: Registry, at: str
) -> None:
    """The image that the other promotion made latest is not recorded as the predecessor's."""
    there = push_foreign(repository, "cuda", **{Label.VERSION: PREDECESSORS})
    one, two = release(1), release(2)
    _, second = earn(repository, one, two)
    between: list[str] = []

    def before(method: str, path: str) -> int | None:
        if at in path and not between:
            between.append(method)
            assert promoted(repository, one).outcome is Outcome.DONE
        return None

    with front(served.address, before) as address:
        done = promoted(open_repository(repository.name.replace(served.address, address)), two)
    assert between
    assert done.digest == repository.digest("latest-cuda") == second
    recorded = [str(move.version) for move in promote.moves(repository.tags(), "cuda")]
    assert recorded == [PREDECESSORS, str(one.version), str(two.version)]
    assert gone_back(repository, Foreign(name=PREDECESSORS)).digest == repository.digest("latest-cuda") == there


def promoted_in_the_end(name: str, released: Release) -> Action:
    """Promotes as its user does: where the registry answers 500, the same command again.

    distribution 2.8 answers 500 to one of two clients that finish an upload of the same blob at the same moment.
    """
    try:
        return promoted(open_repository(name), released)
    except RegistryError as error:
        if "HTTP status 500" not in str(error):
            raise
        return promoted_in_the_end(name, released)


def test_concurrent_first_promotions_keep_the_predecessor(repository: Repository, served: Registry) -> None:
    dice = random.Random(7)  # noqa: S311 - not for cryptography

    def slow(method: str, path: str) -> int | None:
        if "latest-" in path or "move-" in path or "tags" in path or PREDECESSORS in path:
            time.sleep(dice.choice((0, 0.01, 0.03)))
        assert method
        return None

    with front(served.address, slow) as address:
        for number in range(4):
            where = open_repository(f"{repository.name}{number}")
            there = push_foreign(where, "cuda", **{Label.VERSION: PREDECESSORS})
            several = [release(one) for one in (1, 2, 3)]
            digests = earn(where, *several)
            name = where.name.replace(served.address, address)
            at_once = [*several, several[-1]]
            with ThreadPoolExecutor() as pool:
                orders = dice.sample(at_once, len(at_once))
                done = list(pool.map(lambda one, at=name: promoted_in_the_end(at, one), orders, timeout=SECONDS))
            assert where.digest("latest-cuda") == digests[-1]
            assert {one.outcome for one in done if one.digest == digests[-1]} <= {Outcome.DONE, Outcome.ALREADY}
            kept = [move for move in promote.moves(where.tags(), "cuda") if move.number == 0]
            assert [move.version for move in kept] == [Foreign(name=PREDECESSORS)]
            assert gone_back(where, Foreign(name=PREDECESSORS)).digest == where.digest("latest-cuda") == there


# Interruptions, races and full disks.


def test_a_registry_outage_before_any_step_is_finished_by_the_next_run(
    repository: Repository, served: Registry
) -> None:
    """The same command again finishes."""
    one, two = release(1), release(2)
    [first] = earn(repository, one)
    promoted(repository, one)
    tag = versions.platform_tag("cuda", two.version, "amd64")
    digest = push(repository, "built", Platform.AMD64, labels(CUDA, two))
    steps: list[Callable[[], object]] = [
        lambda: publish.anchor(repository, CUDA, two.version, Platform.AMD64, digest),
        lambda: publish.merge(repository, CUDA, two.version),
        lambda: prove(repository, CUDA, two, *PROVEN),
        lambda: promoted(repository, two),
        lambda: rolled_back(repository, one),
    ]
    for step in steps:
        served.kill()
        try:
            with pytest.raises(RegistryError, match="does not answer"):
                step()
        finally:
            served.start()
        step()
    assert repository.digest(tag) == digest
    assert repository.digest("latest-cuda") == first
    assert promote.moves(repository.tags(), "cuda")[-1].version == one.version


def test_a_promotion_killed_after_its_record_is_finished_by_the_next(site: Site, served: Registry) -> None:
    """The record is in effect: the same command again finishes, and no older version takes precedence."""
    repository = site.repository
    one, two, three = site.commit(1), site.commit(2), site.commit(3)
    first, _, third = earn(repository, one, two, three, variant=CPU)
    promoted(repository, one, CPU)
    reached, ended = threading.Event(), threading.Event()

    def hold(method: str, path: str) -> int | None:
        if (method, path.rpartition("/")[2]) != ("PUT", "latest-cpu"):
            return None
        reached.set()
        ended.wait(SECONDS)
        return 503

    with front(served.address, hold) as address:
        behind = site.environment(BASE_IMAGES_REGISTRY=repository.name.replace(served.address, address))
        command = site.command("promote", "--variant", "cpu", "--version", str(three.version))
        with subprocess.Popen(command, cwd=site.clone.working_dir, env=behind) as killed:
            assert reached.wait(SECONDS)
            killed.kill()
            assert killed.wait(SECONDS) == -signal.SIGKILL
        ended.set()
    assert repository.digest("latest-cpu") == first
    assert notes(repository) == [
        f"latest-cpu is not {three.version}, which was made latest: run that promote or rollback again"
    ]
    older = site.refused("promote", "--variant", "cpu", "--version", str(two.version))
    assert f"{three.version} is latest and newer" in older
    site.done("promote", "--variant", "cpu", "--version", str(three.version))
    assert repository.digest("latest-cpu") == third
    assert [move.number for move in promote.moves(repository.tags(), "cpu")] == [1, 2]


def test_a_late_request_of_a_killed_promotion_is_reported(site: Site, served: Registry) -> None:
    """The remaining race: a registry has no compare-and-swap for tags.

    A promotion that is not killed checks again and repairs it. Here the state is reported, and the newer promotion
    again, or any later one, repairs it.
    """
    repository = site.repository
    two, three = site.commit(2), site.commit(3)
    second, third = earn(repository, two, three, variant=CPU)
    reached, go_on = threading.Event(), threading.Event()

    def hold(method: str, path: str) -> int | None:
        if (method, path.rpartition("/")[2]) == ("PUT", "latest-cpu"):
            reached.set()
            go_on.wait(SECONDS)
        return None

    with front(served.address, hold) as address:
        behind = site.environment(BASE_IMAGES_REGISTRY=repository.name.replace(served.address, address))
        command = site.command("promote", "--variant", "cpu", "--version", str(two.version))
        with subprocess.Popen(command, cwd=site.clone.working_dir, env=behind) as killed:
            assert reached.wait(SECONDS)
            assert promoted(repository, three, CPU).digest == repository.digest("latest-cpu") == third
            killed.kill()
        go_on.set()
    assert repository.digest("latest-cpu") == second
    assert notes(repository) == [
        f"latest-cpu is not {three.version}, which was made latest: run that promote or rollback again"
    ]
    assert promoted(repository, three, CPU).outcome is Outcome.DONE
    assert repository.digest("latest-cpu") == third
    assert notes(repository) == []


def test_an_interrupted_push_leaves_no_tag(site: Site, served: Registry) -> None:
    """A tag appears only with the complete image, and the same command again finishes."""
    one = site.commit(1)
    site.build(one, ("app/large", os.urandom(24_000_000)))
    command = site.command("publish", "--variant", "cpu")
    uploads = served.configuration.parent / "data/docker/registry/v2/repositories"
    uploads = uploads / site.repository.name.partition("/")[2] / "_uploads"
    with Stalling(served.address, after=8_000_000) as stalling, running(stalling):
        behind = site.local(one).replace(served.address, stalling.address)
        docker("tag", site.local(one), behind)
        with subprocess.Popen(
            command,
            cwd=site.clone.working_dir,
            env=site.environment(BASE_IMAGES_REGISTRY=behind.rpartition(":")[0]),
            stderr=subprocess.PIPE,
            text=True,
        ) as cut:
            deadline = time.monotonic() + SECONDS
            while not any(path.stat().st_size > 1_000_000 for path in uploads.glob("*/data")):
                assert time.monotonic() < deadline
                assert cut.poll() is None, "the push ended before it was cut"
                time.sleep(0.01)
            served.kill()
            # An engine retries for a minute; the test need not wait for that.
            cut.send_signal(signal.SIGTERM)
            _, said = cut.communicate(timeout=SECONDS)
            assert cut.returncode == 130
        stalling.go_on.set()
        docker("rmi", behind)
    served.start()
    assert "the same command starts again" in said
    assert state(site.repository) == {}
    site.refused("publish", "--variant", "cpu")  # the other platform is missing
    tag = versions.platform_tag("cpu", one.version, site.here.architecture)
    assert set(state(site.repository)) == {tag}
    [image] = site.repository.platform_manifests(tag).values()
    assert image.layers_size > 24_000_000


def test_concurrent_promotions_end_with_the_newest(repository: Repository, served: Registry) -> None:
    """Three at a time through a randomly slow registry, each round in another order."""
    dice = random.Random(5)  # noqa: S311 - not for cryptography
    rounds = 5

    def slow(method: str, path: str) -> int | None:
        if "latest-" in path or "move-" in path or "tags" in path:
            time.sleep(dice.choice((0, 0.01, 0.03)))
        assert method
        return None

    with front(served.address, slow) as address:
        name = repository.name.replace(served.address, address)
        for number in range(rounds):
            at_once = [release(3 * number + one) for one in (1, 2, 3)]
            digests = earn(repository, *at_once)
            with ThreadPoolExecutor() as pool:
                outcomes = list(
                    pool.map(lambda one: promoted(open_repository(name), one), dice.sample(at_once, 3), timeout=SECONDS)
                )
            assert repository.digest("latest-cuda") == digests[-1]
            # A promotion that was overtaken before its end reports that.
            [newest] = [one for one in outcomes if one.digest == digests[-1]]
            assert newest.outcome is Outcome.DONE


def test_a_full_disk_of_the_registry_is_one_sentence(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        served = Registry(tmp_path / "registry", data=disk)
        try:
            repository = open_repository(f"{served.address}/x")
            one, two = release(1), release(2)
            first, second = earn(repository, one, two)
            promoted(repository, one)
            before = state(repository)
            fill(disk / "filler")
            with pytest.raises(RegistryError, match=r"could not push a blob of .* \(HTTP status 500\): run the same"):
                promoted(repository, two)
            assert state(repository) == before
            assert repository.digest("latest-cuda") == first
            (disk / "filler").unlink()
            assert promoted(repository, two).outcome is Outcome.DONE
            assert repository.digest("latest-cuda") == second
        finally:
            served.stop()


def fill(path: Path) -> None:
    """Writes until its disk is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


def test_an_unwritable_action_record_is_reported(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"promote\.jsonl cannot be written .* only on the screen"):
        actions.write("promote", [], tmp_path / "file" / "release")
    one = site.commit(1)
    build_directory(site).parent.mkdir()
    build_directory(site).touch()
    said = site.refused("promote", "--variant", "cpu", code=2)
    assert f"has no cpu-{one.version}: publish it first" in said
    assert "cannot be written (File exists), so what was done is only on the screen" in said


def test_a_directory_without_reports_is_refused(site: Site, tmp_path: Path) -> None:
    assert "Nothing below" in site.refused("attach-reports", str(tmp_path / "nowhere"), code=2)
    one = site.commit(1)
    (tmp_path / "x").mkdir()
    evidence.write(
        report(f"{site.repository.name}@sha256:1", "linux/amd64", Kind.SMOKE, variant="nvidia", version=one.version),
        tmp_path / "x",
    )
    assert "nvidia" in site.refused("attach-reports", str(tmp_path / "x"), code=2)
