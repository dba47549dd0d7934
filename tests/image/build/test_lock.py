"""Locked base images, with a real registry whose tags move, and a real engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from base_images import settings, variants
from base_images.adapters.engine import Engine
from base_images.build import bases, lock
from base_images.build.inputs import Origin
from base_images.progress import silent
from tests.support import builders, clones, commands
from tests.support.registries import Registry

CPU = variants.find("cpu")
RECIPE = "".join(f"ARG {role}_BASE_IMAGE={{0}}/{{1}}:1\n" for role in ("WEB", "BUILD", "RUNTIME")) + "FROM scratch\n"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Registry]:
    with Registry(tmp_path / "registry") as running:
        yield running


def push(engine: Engine, host: Registry, name: str, said: str) -> None:
    """Points a tag at an image of its own."""
    tar = host.configuration.parent / "root.tar"
    if not tar.exists():
        builders.write_root(tar, "sh", "getconf")
    builders.push_root(engine, tar, f"{host.address}/{name}:1", f'CMD ["{said}"]')


def test_a_moved_tag_changes_nothing_until_it_is_locked_again(engine: Engine, host: Registry, tmp_path: Path) -> None:
    root = clones.fresh_copy(tmp_path / "checkout", ".dockerignore", ".gitignore")
    (root / "dockerfiles").mkdir()
    (root / CPU.dockerfile).write_text(RECIPE.format(host.address, "base"))
    (root / lock.FILE).write_text((settings.ROOT / lock.FILE).read_text())
    clones.commit_all(root).close()
    name = f"{host.address}/base:1"

    def used() -> str:
        done = commands.invoke("plan", "--variant", "cpu", "--platform", "amd64", "--format", "json", cwd=root)
        assert done.returncode == 0, done.stderr
        [plan] = json.loads(done.stdout)
        assert plan["labels"]["org.opencontainers.image.base.name"] == name
        assert (
            plan["arguments"]["BUILD_BASE_IMAGE"] == f"{name}@{plan['labels']['org.opencontainers.image.base.digest']}"
        )
        return str(plan["labels"]["org.opencontainers.image.base.digest"])

    def lock_bases(*arguments: str) -> tuple[int, str, str]:
        done = commands.invoke("lock-bases", *arguments, cwd=root)
        return done.returncode, done.stdout, done.stderr

    push(engine, host, "base", "first")
    first = used()
    code, printed, told = lock_bases("--json")
    assert (code, json.loads(printed)) == (0, {name: first})
    assert "dockerfiles/bases.lock is empty, so the tags are taken as they are now" in told
    assert lock.digests(root) == {}
    assert lock_bases("--report", str(tmp_path / "report.md"))[0] == 0
    assert lock.digests(root) == {name: first}
    assert (tmp_path / "report.md").read_text() == f"## Base images\n\n- `{name}`: none → {first}\n"

    push(engine, host, "base", "second")
    assert used() == first
    assert lock_bases("--json") == (0, f'{{"{name}": "{first}"}}\n', "")
    assert lock_bases()[0] == 0
    second = used()
    assert second != first
    assert lock.digests(root) == {name: second}

    # A base that no registry has stays as it was, and one that was never locked is named.
    other = f"ARG SLIM_BASE_IMAGE={host.address}/no:1\n"
    (root / CPU.dockerfile).write_text(other + RECIPE.format(host.address, "base"))
    code, printed, told = lock_bases("--json")
    assert (code, json.loads(printed)) == (0, {name: second})
    assert f"note: dockerfiles/bases.lock lacks {host.address}/no:1: run" in told
    code, _, told = lock_bases()
    assert code == 5
    assert f"{host.address}/no:1 could not be looked up" in told
    assert lock.digests(root) == {name: second}


def test_the_engine_pulls_what_is_locked_and_asks_for_it_once(engine: Engine, host: Registry) -> None:
    name = f"{host.address}/base:1"
    push(engine, host, "base", "first")
    locked = bases.ask(name)
    push(engine, host, "base", "second")
    references = lock.pinned(dict.fromkeys(("web", "build", "runtime"), name), {name: locked})
    try:
        for _ in range(2):
            found = bases.resolve_bases(engine, CPU, references, origin=Origin.REGISTRIES, listener=silent)
            assert (found.runtime.name, found.runtime.digest) == (name, locked)
            assert found.web.reference == f"{name}@{locked}"
            host.stop()  # the second time, nobody answers
    finally:
        if engine.has_image(f"{name}@{locked}"):
            engine.remove_image(f"{name}@{locked}")
