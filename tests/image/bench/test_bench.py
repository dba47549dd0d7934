"""The comparison itself, with recipes of a few lines and a source of a few files; the servers with the real image."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import git
import pytest

from base_images import settings
from base_images.adapters.engine import Engine, Image
from base_images.bench import builds, run, servers
from base_images.bench.cases import METRICS, Metric, Part, Side
from base_images.bench.measured import Kept, Measurement
from base_images.build import uncached
from base_images.smoke import model
from base_images.smoke.model import TensorType
from tests.support import clones, commands

RECIPE = """\
FROM {web} AS web
RUN mkdir /web
FROM {build} AS build
{copy}
RUN {cache}mkdir -p /out && {hits}sleep 1 && \\
    cp {path}tools/server/server.cpp {path}ggml/include/ggml.h {path}ggml/src/ggml-impl.h /out/
FROM {runtime} AS base
RUN mkdir -p /models {more}
FROM base AS {target}
COPY --from=web /web /web
COPY --from=build /out /app/from-source
"""

ARGUMENTS = "ARG WEB_BASE_IMAGE=node\nARG BUILD_BASE_IMAGE=debian\nARG RUNTIME_BASE_IMAGE=debian\n"
PARTS = "cold,nothing,server,header,inner-header,bump,size"


def recipe(side: Side) -> str:
    if side is Side.UPSTREAM:
        more = "&& head -c 300000 /dev/urandom > /more"
        names = {"web": "docker.io/node:$N", "build": "docker.io/ubuntu:24.04", "runtime": "docker.io/ubuntu:24.04"}
        return RECIPE.format(**names, copy="COPY . .", cache="", hits="", path="", more=more, target="server")
    names = {role: f"${{{role.upper()}_BASE_IMAGE}}" for role in ("web", "build", "runtime")}
    return ARGUMENTS + RECIPE.format(
        **names,
        copy="COPY llama.cpp/ llama.cpp/",
        cache="--mount=type=cache,id=llama-cpp-ccache,target=/ccache ",
        hits='touch /ccache/$(date +%N) && echo "  Hits:  $(ls /ccache | wc -l) / 7" && ',
        path="llama.cpp/",
        more="",
        target="runtime",
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose recipe for cpu is ours of a few lines."""
    made = tmp_path / "checkout"
    git.Repo.clone_from(str(settings.ROOT), made)
    clones.fresh_copy(made, ".dockerignore", "dockerfiles")
    (made / "dockerfiles/cpu.Dockerfile").write_text(recipe(Side.OURS))
    return made


def tree(directory: Path, tag: str) -> Path:
    """Makes a source tree with upstream's recipe of a few lines, and that tag."""
    files = {
        "CMakeLists.txt": 'project("llama.cpp" C CXX)\n',
        ".devops/cpu.Dockerfile": recipe(Side.UPSTREAM),
        "ggml/CMakeLists.txt": "",
        "ggml/include/ggml.h": "",
        "ggml/src/ggml-impl.h": "",
        "tools/server/CMakeLists.txt": "",
        "tools/server/server.cpp": f"// {tag}\n",
        "tools/ui/package.json": "{}",
    }
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    clones.commit_all(directory).create_tag(tag)
    return directory


@pytest.fixture
def clean(engine: Engine) -> Iterator[None]:
    before = {tag for image in engine.images(reference=builds.REPOSITORY) for tag in image.tags}
    yield
    for image in engine.images(reference=builds.REPOSITORY):
        for tag in set(image.tags) - before:
            engine.remove_image(tag)


@pytest.mark.usefixtures("clean")
def test_a_comparison_is_interrupted_goes_on_and_reports(engine: Engine, checkout: Path, tmp_path: Path) -> None:
    first, later, record = tree(tmp_path / "first", "b7"), tree(tmp_path / "later", "b8"), tmp_path / "record"
    command = [*commands.INVOKE, "bench", "--source", str(first), "--to", str(later), "--origin", "packages"]
    command += ["--rounds", "1", "--record", str(record)]
    begun = commands.run([*command, "--only", "cold"], cwd=checkout)
    assert begun.returncode == 0, begun.stderr
    kept = record / "cpu/measured.jsonl"
    cold = kept.read_text().splitlines()
    assert len(cold) == 1 + len(Side)

    done = commands.run([*command, "--only", PARTS, "--json"], cwd=checkout)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert kept.read_text().splitlines()[:3] == cold, "what was measured is kept"
    assert report == json.loads((record / "cpu/report.json").read_text())
    results = {result["metric"]: result for result in report["results"]}
    measured = [metric.name for metric in METRICS if metric.part not in (Part.START, Part.SPEED)]
    assert list(results) == measured
    assert all(result["ours"] and result["upstream"] and result["ratio"] for result in results.values())

    def of(name: str, side: Side) -> list[Any]:
        return [one for one in report["measurements"] if (one["metric"], one["side"]) == (name, side)]

    for side in Side:
        for name in ("cold", "server", "header", "inner-header", "bump"):
            [one] = of(name, side)
            slept = [step for step in one["steps"] if "mkdir -p /out" in step["name"]]
            assert [step["cached"] for step in slept] == [False], (name, side)
            assert slept[0]["seconds"] >= 1
        [nothing] = of("nothing", side)
        assert all(step["cached"] for step in nothing["steps"] if "RUN" in step["name"]), side
    # The first build's cache is empty and later ones find what it left there.
    assert of("cold", Side.OURS)[0]["said"] == {"cache hits": 1, "compilations": 7}
    assert of("server", Side.OURS)[0]["said"]["cache hits"] == 2, "cold, again, as its layers and cache were removed"
    assert results["files"]["upstream"]["median"] == results["files"]["ours"]["median"] + 1
    assert results["disk"]["upstream"]["median"] - results["disk"]["ours"]["median"] == pytest.approx(300_000, abs=99)
    # Only the layers after the source change: 300 kB of upstream's base stage are not pulled again.
    assert results["update"]["upstream"]["median"] < 3_000
    assert results["cold"]["goal"] == "≤ 0.85"
    assert results["cold"]["met"] is (results["cold"]["ratio"]["median"] <= 0.85)
    page = (record / "cpu/report.html").read_text()
    assert "Cold build" in page

    marks = {uncached.variable(one["mark"]) for side in Side for one in of("cold", side)}
    left = [record for record in build_cache(engine) if any(mark in record["Description"] for mark in marks)]
    assert len(marks) == len(Side)
    assert not left, "what the round left in the build cache is removed"
    same = commands.run([str(first) if word == str(later) else word for word in command], cwd=checkout)
    assert same.returncode == 2, same.stderr
    assert "Both trees are llama.cpp b7" in same.stderr
    (checkout / "dockerfiles/llama-user").write_text("changed")
    other = commands.run(command, cwd=checkout)
    assert other.returncode == 2, other.stderr
    assert "has measurements with another recipes" in other.stderr


def build_cache(engine: Engine) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = engine._client.df()["BuildCache"] or []
    return records


def test_starts_take_turns_and_tokens_are_counted_over_all_clients(
    engine: Engine, cpu_image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "STARTS", 2)
    kept = Kept(tmp_path, {"variant": "cpu"})
    for side in Side:  # so that nothing has to be built
        kept.add(Measurement(metric="cold", side=side, round=1, value=1, mark="none", image=cpu_image.id))
    kept.add(Measurement(metric="cold", side=Side.OURS, round=2, value=1, mark="none", image="sha256:" + "0" * 64))
    prepared: Any = None
    bench = builds.Bench(
        engine=engine, root=tmp_path, kept=kept, first=prepared, later=prepared, on_event=print, say=print
    )
    run.run(bench, (Part.START,), 1)
    started = [(one.metric, one.side) for one in kept.measurements[3:]]
    once = [(name, side) for side in Side for name in ("first-token", "memory")]
    assert started == 2 * once
    assert all(one.value > (1 << 20) for one in kept.measurements if one.metric == "memory")
    gguf = model.known_answer(TensorType.Q8_0).gguf
    for clients, cpus in ((1, 0), (8, 1)):
        metric = Metric(name="", title="", part=Part.SPEED, unit="tokens/s", clients=clients, cpus=cpus)
        assert servers.rate(engine, cpu_image.id, gguf, metric) > 0
