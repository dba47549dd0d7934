"""One run of the comparison: rounds of measurements, in which both sides take turns."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from base_images.adapters.engine import Engine
from base_images.bench import builds, servers, sizes
from base_images.bench.builds import Bench
from base_images.bench.cases import BUILDS, METRICS, Metric, Part, Side
from base_images.bench.measured import Measurement
from base_images.build.inputs import Source
from base_images.build.local import Prepared
from base_images.build.source import tree_digest
from base_images.recipes.dockerfile import BASE_ARGUMENTS


def about(first: Prepared, later: Prepared, root: Path) -> dict[str, Any]:
    """Returns what measurements are of: two runs whose values differ cannot be added up."""
    plan = first.plan

    def described(source: Source) -> dict[str, str]:
        return {"tag": source.tag, "commit": source.commit, "digest": source.digest}

    return {
        "variant": plan.variant,
        "against": "upstream",
        "platform": plan.platform,
        "llama.cpp": described(first.source),
        "next llama.cpp": described(later.source),
        "bases": {role: plan.arguments[argument] for role, argument in BASE_ARGUMENTS.items()},
        "recipes": tree_digest(root / "dockerfiles"),
    }


def machine(engine: Engine) -> dict[str, Any]:
    """Returns what the measurements are made on; without names that say whose machine it is."""
    info = engine.info()
    text = _read("/proc/cpuinfo")
    name = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    total = re.search(r"^MemTotal: +(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE)
    return {
        "processor": name[1] if name else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory": int(total[1]) * 1024 if total else None,
        "kernel": platform.release(),
        "engine": f"{info.name} {info.version}",
        "storage": engine.storage_driver(),
    }


def run(bench: Bench, parts: Sequence[Part], rounds: int) -> None:
    """Measures what the kept measurements lack of these parts, up to so many rounds.

    The build cache of a round is removed at its end: what follows would be measured cold again.
    """
    for number in range(1, rounds + 1):
        for part in parts:
            if part in BUILDS:
                for side in builds.order(number):
                    if not bench.kept.of(part, side, number):
                        bench.measure(part, side, number)
            elif part is Part.START:
                _measure_starts(bench, number)
            elif part is Part.SPEED:
                _measure_speed(bench, number)
            elif number == 1:  # sizes do not vary
                _measure_sizes(bench)
        freed = bench.forget(number)
        bench.say(f"round {number} of {rounds} is complete; {freed / 1e9:.1f} GB of its build cache were removed")


def _measure_starts(bench: Bench, number: int) -> None:
    sides = builds.order(number)
    for _ in range(servers.STARTS - len(bench.kept.of("memory", sides[1], number))):
        for side in sides:
            [image] = bench.images([Part.COLD], side, number)

            def measure(side: Side = side, image: str = image) -> Iterator[Measurement]:
                started = servers.start(bench.engine, image)
                yield _value("first-token", side, number, round(started.seconds, 4))
                yield _value("memory", side, number, started.memory)

            bench.record(measure)


def _measure_speed(bench: Bench, number: int) -> None:
    metrics = [metric for metric in METRICS if metric.part is Part.SPEED]
    gguf = servers.written_model()
    for metric in metrics:
        for side in builds.order(number):
            if bench.kept.of(metric.name, side, number):
                continue
            [image] = bench.images([Part.COLD], side, number)

            def measure(metric: Metric = metric, side: Side = side, image: str = image) -> Iterator[Measurement]:
                tokens = servers.rate(bench.engine, image, gguf, metric)
                yield _value(metric.name, side, number, round(tokens, 2))

            bench.record(measure)


def _measure_sizes(bench: Bench) -> None:
    base = bench.engine.image(bench.first.plan.arguments[BASE_ARGUMENTS["runtime"]])
    for side in Side:
        if bench.kept.of("update", side, 1):
            continue
        images = bench.images([Part.COLD, Part.BUMP], side, 1)

        def measure(side: Side = side, images: Sequence[str] = images) -> Iterator[Measurement]:
            first, later = (sizes.added(bench.engine, bench.engine.image(image), base) for image in images)
            for name, value in sizes.values(first, later).items():
                said = {"of": [layer.as_json() for layer in first]} if name == "disk" else {}
                yield _value(name, side, 1, value, said)

        bench.record(measure)


def _value(name: str, side: Side, number: int, value: float, said: Mapping[str, Any] | None = None) -> Measurement:
    return Measurement(metric=name, side=side, round=number, value=value, said=said or {})


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
