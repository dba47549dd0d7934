"""Publishing and promotion that are killed, raced and starved: the same command again finishes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from base_images import versions
from base_images.adapters.registry import Repository, open_repository
from base_images.errors import RegistryError, UsageError
from base_images.release import actions, evidence, promote, publish
from base_images.release.actions import Outcome
from base_images.release.evidence import Kind
from base_images.variants import Platform
from tests.support import disks
from tests.support.programs import wait_for
from tests.support.registries import Registry, Stalling, front
from tests.support.releases import (
    CPU,
    CUDA,
    PROVEN,
    SECONDS,
    Site,
    build_directory,
    docker,
    earn,
    labels,
    notes,
    promoted,
    prove,
    push,
    release,
    report,
    rolled_back,
    state,
)
from tests.support.servers import running


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
        behind = repository.name.replace(served.address, address)
        arguments = ("promote", "--variant", "cpu", "--version", str(three.version))
        with site.start(*arguments, BASE_IMAGES_REGISTRY=behind) as killed:
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
        behind = repository.name.replace(served.address, address)
        arguments = ("promote", "--variant", "cpu", "--version", str(two.version))
        with site.start(*arguments, BASE_IMAGES_REGISTRY=behind) as killed:
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
    uploads = served.configuration.parent / "data/docker/registry/v2/repositories"
    uploads = uploads / site.repository.name.partition("/")[2] / "_uploads"
    with Stalling(served.address, after=8_000_000) as stalling, running(stalling):
        behind = site.local(one).replace(served.address, stalling.address)
        docker("tag", site.local(one), behind)
        with site.start("publish", "--variant", "cpu", BASE_IMAGES_REGISTRY=behind.rpartition(":")[0]) as cut:

            def has_begun() -> bool:
                assert cut.poll() is None, "the push ended before it was cut"
                return any(path.stat().st_size > 1_000_000 for path in uploads.glob("*/data"))

            wait_for(has_begun)
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


def test_a_full_disk_of_the_registry_is_one_sentence(tmp_path: Path) -> None:
    with disks.small(tmp_path / "disk", "2m") as disk, Registry(tmp_path / "registry", data=disk) as served:
        repository = open_repository(f"{served.address}/x")
        one, two = release(1), release(2)
        first, second = earn(repository, one, two)
        promoted(repository, one)
        before = state(repository)
        disks.fill(disk / "filler")
        with pytest.raises(RegistryError, match=r"could not push a blob of .* \(HTTP status 500\): run the same"):
            promoted(repository, two)
        assert state(repository) == before
        assert repository.digest("latest-cuda") == first
        (disk / "filler").unlink()
        assert promoted(repository, two).outcome is Outcome.DONE
        assert repository.digest("latest-cuda") == second


def test_an_unwritable_action_record_is_reported(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"promote\.jsonl cannot be written .* only on the screen"):
        actions.write("promote", [], tmp_path / "file" / "release")
    one = site.commit(1)
    build_directory(site).parent.mkdir()
    build_directory(site).touch()
    screen = "cannot be written (File exists), so what was done is only on the screen"
    said = site.refused("promote", "--variant", "cpu")
    assert f"has no cpu-{one.version}: publish it first" in said
    assert screen in said
    assert "error: promote: not done for cpu: see above." in said
    earn(site.repository, one, variant=CPU)
    said = site.refused("promote", "--variant", "cpu", code=2)
    assert f"done promote cpu: {site.repository.name}:latest-cpu" in said
    assert screen in said


def test_a_directory_without_reports_is_refused(site: Site, tmp_path: Path) -> None:
    assert "Nothing below" in site.refused("attach-reports", str(tmp_path / "nowhere"), code=2)
    one = site.commit(1)
    (tmp_path / "x").mkdir()
    evidence.write(
        report(f"{site.repository.name}@sha256:1", "linux/amd64", Kind.SMOKE, variant="nvidia", version=one.version),
        tmp_path / "x",
    )
    assert "nvidia" in site.refused("attach-reports", str(tmp_path / "x"), code=2)
