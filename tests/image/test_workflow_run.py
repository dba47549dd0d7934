"""The workflows' own lines, run in GitHub's order and environment, against a local registry and local remotes.

This machine stands in for the runners, a few lines for each action, a program that records its arguments for cosign,
and one that keeps issues for gh. One variant is real; another one's base images cannot be pulled.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import git
import pytest

from base_images import settings, variants, versions
from base_images.adapters import registry
from base_images.adapters.engine import Engine, Image
from base_images.build import bakefile, lock
from base_images.build import bases as origin
from base_images.build.inputs import Origin
from base_images.labels import Label
from base_images.progress import silent
from base_images.recipes import bump, consumer
from base_images.recipes.dockerfile import BASE_ARGUMENTS
from base_images.versions import Version
from tests.support import bodhi, builders, clones, commands, workflows
from tests.support.issues import Issues
from tests.support.registries import Registry

GOOD, BAD = "cpu", "musa"
COSIGN = '#!/bin/sh\necho "$*" >>"$SIGNED"\n'


@dataclass
class GitHub:
    """A machine that runs the steps of a workflow."""

    clone: git.Repo
    environment: Mapping[str, str]
    directory: Path
    repository: str
    bakes: bool
    issues: Issues
    ran: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    opened: str = ""

    @property
    def version(self) -> Version:
        commit = self.clone.head.commit
        return versions.of_commit(commit.hexsha, commit.committed_date, dirty=False)

    def tag(self) -> None:
        """Tags and pushes HEAD by hand, without `release-base-images`."""
        self.clone.git.tag("--annotate", "--message", "A release", self.version.git_tag)
        self.clone.git.push("origin", self.version.git_tag)

    def run(self, workflow: str) -> None:
        """Runs the steps that GitHub runs when that tag is pushed."""
        self.ran, self.failed = [], []
        contexts = {
            "github": {
                "ref": f"refs/tags/{self.version.git_tag}",
                "ref_type": "tag",
                "actor": "somebody",
                "repository": "somebody/llama.cpp",
                "token": "",
            },
            "vars": {},
            "secrets": {"GITHUB_TOKEN": "nothing"},
            "inputs": {"dry_run": None},
        }
        for step in workflows.steps(workflow, contexts):
            if step.uses:
                self._act(step)
            elif not any(left in step.run for left in self._left_out):
                self._shell(step)

    @property
    def _left_out(self) -> tuple[str, ...]:
        """What is not run here: a second build compiles everything, and without buildx there is no builder to fill."""
        rebuild = ("invoke verify-reproducible", "invoke attach-reports build/rebuilt")
        return rebuild if self.bakes else (*rebuild, "-compiler-cache ")

    def _shell(self, step: workflows.Step) -> None:
        output = self.directory / "output"
        output.write_text("")
        done = commands.run(
            ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", self._executable(step.run)],
            cwd=self.clone.working_dir,
            env={**self.environment, **step.environment, "GITHUB_OUTPUT": str(output)},
            timeout=1200,
        )
        step.succeeded = done.returncode == 0
        for line in output.read_text().splitlines():
            name, _, step.outputs[name] = line.partition("=")
        self.ran.append(f"{step.job}: {step.run}\n{done.stdout}{done.stderr}")
        if not step.succeeded and not step.tolerated:
            self.failed.append(self.ran[-1])

    def _executable(self, lines: str) -> str:
        """Returns the lines; where buildx cannot push, the engine builds and pushes in place of bake."""
        if self.bakes or " invoke bake " not in lines:
            return lines
        build = re.sub(r"invoke bake (.*?) --platform \S+ --push", r"invoke build-local \1", lines)
        return f'{build}\nsh scripts/bootstrap.sh invoke publish --variant "$VARIANT"'

    def _act(self, step: workflows.Step) -> None:
        action = step.uses.partition("@")[0]
        here = Path(self.clone.working_dir)
        artifacts = self.directory / "artifacts"
        self.ran.append(f"{step.job}: {action} {dict(step.inputs)}")
        match action:
            case "actions/checkout":
                # Each runner starts without the files of earlier ones.
                shutil.rmtree(here / "build", ignore_errors=True)
                self.clone.git.clean("--force", "-d")
            case "actions/upload-artifact" | "actions/upload-pages-artifact":
                _copy(here / step.inputs["path"], artifacts / step.inputs.get("name", "github-pages"))
            case "actions/download-artifact":
                merges = step.inputs.get("merge-multiple") == "true"
                for found in artifacts.glob(step.inputs["pattern"]):
                    _copy(found, here / step.inputs["path"] / ("" if merges else found.name))
            case "softprops/action-gh-release":
                shutil.copytree((here / step.inputs["body_path"]).parent, self.directory / "page", dirs_exist_ok=True)
            case "peter-evans/create-pull-request":
                self.opened = (here / step.inputs["body-path"]).read_text()
                step.outputs["pull-request-operation"] = "created"
            case "anchore/scan-action":
                self._scan(step)
            case "actions/attest":
                assert re.fullmatch("sha256:[0-9a-f]{64}", step.inputs["subject-digest"])
            case (
                "actions/deploy-pages"
                | "docker/login-action"
                | "docker/setup-buildx-action"
                | "sigstore/cosign-installer"
            ):
                pass
            case _:
                raise AssertionError(action)

    def _scan(self, step: workflows.Step) -> None:
        name, _, tag = step.inputs["image"].removeprefix("registry:").rpartition(":")
        step.succeeded = step.environment["GRYPE_PLATFORM"] in registry.open_repository(name).platform_manifests(tag)
        if step.succeeded:
            Path(self.clone.working_dir, step.inputs["output-file"]).write_text('{"version": "2.1.0", "runs": []}')
        else:
            self.failed.append(self.ran[-1])


def _copy(source: Path, target: Path) -> None:
    """Copies a directory's files, or a file, into a directory; what is not there is left out, as the actions do."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    elif source.exists():
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


@pytest.fixture(scope="module")
def github(engine: Engine, cpu_image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitHub]:
    tmp_path = tmp_path_factory.mktemp("github")
    host = Registry(tmp_path / "registry")
    repository = f"{host.address}/bodhisearch/llama.cpp"
    programs = tmp_path / "bin"
    programs.mkdir()
    issues = Issues(programs)
    (programs / "cosign").write_text(COSIGN)
    (programs / "cosign").chmod(0o755)
    environment = {
        **clones.environment(),
        settings.REGISTRY_VARIABLE: repository,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SIGNED": str(tmp_path / "signed"),
        "CI": "true",
        "GITHUB_ACTIONS": "true",
        "RUNNER_ENVIRONMENT": "self-hosted",
    }
    del environment["LLAMA_CPP_DIR"]  # bake uses the checkout's own source
    bakes = builders.can_be_remote(engine)
    try:
        with contextlib.ExitStack() as stack:
            clone = stack.enter_context(clones.clone(tmp_path))
            clones.narrow(clone, (GOOD, BAD))
            if bakes:
                # As setup-buildx-action does: a default builder.
                patch = stack.enter_context(pytest.MonkeyPatch.context())
                patch.setenv("BUILDX_CONFIG", str(tmp_path / "buildx"))
                name = stack.enter_context(builders.of_engine(tmp_path))
                subprocess.run(["docker", "buildx", "use", name], check=True)
                generator = f"{host.address}/generator:1"
                builders.push_generator(engine, generator, tmp_path, file="/etc/debian_version")
                environment |= {"BUILDX_CONFIG": str(tmp_path / "buildx"), bakefile.SBOM_GENERATOR_VARIABLE: generator}
            if cpu_image.labels[Label.BUILD_ORIGIN] == Origin.PACKAGES:
                serve_bases(engine, Path(clone.working_dir), host.address)
                clone.git.commit("--all", "--message", "Bases from the local registry")
                clone.git.push("origin", "main")
            yield GitHub(
                clone=clone,
                environment=environment,
                directory=tmp_path,
                repository=repository,
                bakes=bakes,
                issues=issues,
            )
    finally:
        host.stop()
        engine.tag(cpu_image.id, versions.local_reference(GOOD))
        for image in engine.images():
            for reference in (*image.tags, *image.repo_digests):
                if reference.startswith(host.address):
                    engine.remove_image(reference)


def serve_bases(engine: Engine, root: Path, address: str) -> None:
    """Pushes the cpu image's bases to a registry and makes its recipe use them."""
    bases = origin.resolve_bases(engine, variants.find(GOOD), {}, origin=Origin.PACKAGES, listener=silent)
    recipe = root / variants.find(GOOD).dockerfile
    text = recipe.read_text()
    for role, argument in BASE_ARGUMENTS.items():
        reference = f"{address}/{role}:1"
        engine.tag(engine.image(getattr(bases, role).reference).id, reference)
        engine.push(reference)
        text = re.sub(rf"^ARG {argument}=.*$", f"ARG {argument}={reference}", text, flags=re.MULTILINE)
    recipe.write_text(text)


def test_a_pushed_tag_becomes_latest_and_a_failure_stops_its_variant_only(github: GitHub) -> None:
    github.tag()
    github.run("release.yml")
    trail = "\n".join(github.ran)
    failed = "\n".join(github.failed)
    # The other variant's base image cannot be pulled; everything else succeeded, and the promotion says so.
    assert [text.partition(":")[0] for text in github.failed] == ["variants/build", "promote"], trail
    assert re.search(rf"(?s)invoke bake .*{BAD}|(is not available|cannot be looked up)", github.failed[0]), failed
    assert f"refused  promote {BAD}" in github.failed[1], failed
    assert f"done  promote {GOOD}" in github.failed[1], failed

    where = registry.open_repository(github.repository)
    digest = where.digest(versions.image_tag(GOOD, github.version))
    assert digest
    assert where.digest(versions.latest_tag(GOOD)) == digest
    assert where.digest(versions.image_tag(GOOD, github.version, versions.Target.OPERATIONS))
    assert where.digest(versions.latest_tag(BAD)) is None
    [signed] = Path(github.environment["SIGNED"]).read_text().splitlines()
    assert signed.startswith("sign --yes ")
    assert signed.endswith(f"@{digest}")
    record = json.loads((github.directory / "page" / "release.json").read_text())
    assert {variant["name"]: variant["status"] for variant in record["variants"]} == {GOOD: "latest", BAD: "missing"}
    assert record["bases"]
    assert {len(digests) for digests in record["bases"].values()} == {1}, "all jobs took the same"
    if github.bakes:
        assert where.digest(f"ccache-{GOOD}-amd64") or where.digest(f"ccache-{GOOD}-arm64")
    page = {path.name for path in (github.directory / "page").iterdir()}
    assert "contract-cpu" in " ".join(page)
    assert [name.startswith(f"scan-{GOOD}-") for name in page if name.endswith(".sarif")] == [True]

    [page_of, *_] = json.loads((github.directory / "artifacts/github-pages/status.json").read_text())["variants"]
    assert (page_of["published"]["latest"]["digest"], page_of["release"]["status"]) == (digest, "latest")

    # At night, what is latest is verified and scanned; the other variant was never promoted, which is no failure.
    github.run("nightly.yml")
    trail = "\n".join(github.ran)
    assert github.failed == [], trail
    assert re.search(r"smoke +│ pass", trail), trail
    assert f"'image': 'registry:{github.repository}:{versions.latest_tag(GOOD)}'" in trail
    assert "Everything that is latest passes." in trail
    assert github.issues.all == []

    # "Re-run all jobs" builds and moves nothing again.
    tags = {tag: where.digest(tag) for tag in where.tags() if not tag.startswith("sha256-")}
    github.run("release.yml")
    assert {tag: where.digest(tag) for tag in where.tags() if not tag.startswith("sha256-")} == tags
    assert f"already  promote {GOOD}" in "\n".join(github.ran)

    # Somebody removes the tag: the next night has an issue.
    path = github.repository.partition("/")[2]
    repositories = github.directory / "registry/data/docker/registry/v2/repositories"
    shutil.rmtree(repositories / path / "_manifests/tags" / versions.latest_tag(GOOD))
    github.run("nightly.yml")
    assert [text.partition(":")[0] for text in github.failed] == ["scan/scan", "verify"], "\n".join(github.ran)
    [issue] = github.issues.all
    assert f"{versions.latest_tag(GOOD)} is gone, and {github.version} was made latest" in issue["body"].replace(
        "\\", ""
    )


def test_the_pin_follows_upstream_by_a_pull_request(github: GitHub) -> None:
    root = Path(github.clone.working_dir)
    upstream = github.directory / "upstream"
    shutil.copytree(clones.pinned_tree() / ".devops", upstream / ".devops")
    one = clones.commit_all(upstream).create_tag("b1").commit.hexsha
    recipe = upstream / ".devops" / "cpu.Dockerfile"
    recipe.write_text(recipe.read_text().replace("-DGGML_NATIVE=OFF", "-DGGML_NATIVE=ON"))
    two = clones.commit_all(upstream).create_tag("b2").commit.hexsha
    pin = settings.load(root).pin
    names = bump.Names(tag="b1", release="", commit=one)
    for path, text in bump.bump(bump.pinned_texts(root), pin, names, sdist="", sdist_sha256="").items():
        (root / path).write_text(text.replace(f'"{pin.repository}"', f'"{upstream}"'))
    consumer_checkout = bodhi.checkout(github.directory / "BodhiApp")
    text = (root / consumer.FILE).read_text()
    (root / consumer.FILE).write_text(text.replace(f'"{bodhi.DATA.repository}"', f'"file://{consumer_checkout}"'))
    recipe = consumer_checkout / "devops" / "cpu.Dockerfile"
    recipe.write_text(recipe.read_text().replace("--threads 4", "--threads 6"))
    clones.commit_all(consumer_checkout)
    github.clone.git.commit("--all", "--message", "A local pin and consumer")

    github.run("upstream.yml")

    consumers, bases = github.failed
    assert "invoke check-consumer" in consumers
    assert re.search(rf"invoke lock-bases(?s:.*){BAD}\S*, \S+ could not be looked up, see above; the rest is in", bases)
    assert re.search(r"## Base images\n\n- `127\.0\.0\.1:\d+/build:1`: none → sha256:", github.opened)
    assert len(lock.digests(root)) == len(BASE_ARGUMENTS)
    assert "gh workflow run ci.yml" in github.ran[-1]
    assert "cpu: `BODHI_LLAMACPP_ARGS_CPU`: `--threads 4 --no-mmap` → `--threads 6 --no-mmap`" in github.opened
    assert (settings.load(root).pin.tag, settings.load(root).pin.commit) == ("b2", two)
    changed = github.opened.partition("## What our recipes need")[0]
    assert re.search(r"cpu(?s:.*)GGML_NATIVE(?s:.*)ON", changed), github.opened
    moved = {item.a_path for item in github.clone.index.diff(None)}
    assert moved <= {*bump.pinned_texts(root), lock.FILE}, "nothing else moved"
