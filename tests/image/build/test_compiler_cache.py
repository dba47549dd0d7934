"""The compiler's cache goes from one builder to another through a registry; each cache mount is one builder's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from base_images import variants
from base_images.adapters import registry
from base_images.adapters.buildkit import Event, StepLog
from base_images.adapters.engine import Engine
from base_images.build import bakefile, compiler_cache
from base_images.build.plan import BuildPlan
from base_images.variants import Platform
from base_images.versions import Target
from tests.support import builders
from tests.support.registries import Registry

CUDA, VULKAN = variants.find("cuda"), variants.find("vulkan")
PROGRAMS = ("sh", "cp", "find", "sort", "awk", "xargs", "rm", "mkdir", "touch", "cat")
FILL = (
    "mkdir -p /ccache/a && touch -d @1000000 /ccache/a/oldR && "
    "printf old > /ccache/a/oldR && printf newer > /ccache/a/newR && touch -d @1000000 /ccache/a/oldR"
)


@pytest.fixture(scope="module")
def builder(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not builders.can_be_remote(engine):
        pytest.skip("needs buildx, and an engine of this machine with the containerd image store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUILDX_CONFIG", str(tmp_path_factory.mktemp("buildx")))
        with builders.of_engine(tmp_path_factory.mktemp("buildkit")) as name:
            yield name


@pytest.fixture(scope="module")
def base(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("registry")
    with Registry(directory) as running:
        reference = f"{running.address}/build:1"
        builders.push_root(engine, builders.write_root(directory / "root.tar", *PROGRAMS), reference, 'CMD ["sh"]')
        yield reference


def plan_on(base: str, platform: str) -> BuildPlan:
    return BuildPlan(
        variant="cuda",
        version="",
        platform=platform,
        dockerfile="",
        target=Target.RUNTIME,
        arguments={"BUILD_BASE_IMAGE": base},
        labels={},
        tags=(),
    )


def run(plan: BuildPlan, command: str, *, root: Path, builder: str, base: str) -> list[str]:
    """Runs a command on the builder's cache and returns what it prints."""
    inline = f"FROM {base}\nRUN --mount={compiler_cache.MOUNT} {command} # {time.monotonic_ns()}\n"
    target = {
        "context": ".",
        "dockerfile-inline": inline,
        "platforms": [plan.platform],
        "output": ["type=cacheonly"],
    }
    events: list[Event] = []
    bakefile.bake({"target": {"it": target}}, ["it"], root=root, builder=builder, on_event=events.append)
    return [event.line for event in events if isinstance(event, StepLog)]


def test_a_new_builder_starts_with_what_another_one_used_last(
    engine: Engine, builder: str, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_on(base, engine.platform().docker)
    repository = registry.open_repository(f"{base.partition('/')[0]}/images")
    reference = f"{repository.name}:{compiler_cache.tag(CUDA, engine.platform())}"
    assert compiler_cache.saved(repository, CUDA, engine.platform()) is None

    monkeypatch.setattr(compiler_cache, "MOUNT", f"type=cache,id={tmp_path}/one,target=/ccache")
    run(plan, FILL, root=tmp_path, builder=builder, base=base)
    compiler_cache.save(plan, reference, root=tmp_path, builder=builder)
    compiler_cache.save(plan, f"{reference}-small", root=tmp_path, builder=builder, limit=len("newer"))
    own = compiler_cache.saved(repository, CUDA, engine.platform())
    assert own
    assert own.startswith(f"{reference}@sha256:")
    assert compiler_cache.saved(repository, VULKAN, engine.platform()) == own, "another variant's, without its own"
    other = next(platform for platform in Platform if platform is not engine.platform())
    assert compiler_cache.saved(repository, VULKAN, other) is None, "another platform's objects are of no use"

    show = "cat /ccache/a/*R && find /ccache/a -name oldR -not -newermt @1000001"
    for name, saved, contents in (
        ("two", own, ["newerold/ccache/a/oldR"]),
        ("three", f"{reference}-small", ["newer"]),
    ):
        monkeypatch.setattr(compiler_cache, "MOUNT", f"type=cache,id={tmp_path}/{name},target=/ccache")
        compiler_cache.load(plan, saved, root=tmp_path, builder=builder)
        assert run(plan, f"{show} && echo", root=tmp_path, builder=builder, base=base)[:1] == contents

    # What a builder has already stays.
    run(plan, "printf mine > /ccache/a/newR", root=tmp_path, builder=builder, base=base)
    compiler_cache.load(plan, own, root=tmp_path, builder=builder)
    assert run(plan, f"{show} && echo", root=tmp_path, builder=builder, base=base)[0].startswith("mineold")
