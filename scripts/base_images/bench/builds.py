"""Measures the builds of both sides, round by round."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from base_images.adapters import buildkit
from base_images.adapters.engine import Engine
from base_images.bench import contexts, measured
from base_images.bench.cases import EDITS, Part, Side
from base_images.bench.measured import Kept, Measurement, Step
from base_images.build import local, uncached
from base_images.build.local import Prepared
from base_images.errors import ImageNotFoundError

REPOSITORY = "llama-cpp-bench"
"""Of the images that are compared. They stay, since further parts need them; `clean-local-images` removes them."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What the builds of one variant share.

    Attributes:
        first: our plan for the pin.
        later: our plan for the next llama.cpp.
        say: shows a line.
    """

    engine: Engine
    root: Path
    kept: Kept
    first: Prepared
    later: Prepared
    on_event: Callable[[buildkit.Event], None]
    say: Callable[[str], None]
    warm: set[tuple[int, Side]] = field(default_factory=set)

    def record(self, measure: Callable[[], Iterable[Measurement]]) -> None:
        """Measures, and keeps and shows the measurements with the machine's load and the time."""
        busy = measured.busy()
        for made in measure():
            at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
            self.kept.add(replace(made, busy=busy, load=measured.load(), at=at))
            told = "".join(f", {value} {name}" for name, value in made.said.items() if isinstance(value, int))
            idle = "" if busy is None else f", {busy:.0%} busy before"
            self.say(f"round {made.round}  {made.metric:14} {made.side:9} {made.value:14,.2f}{told}{idle}")

    def measure(self, part: Part, side: Side, number: int) -> None:
        """Builds a side and keeps the measurement; first what the part's build is compared with, if that is cold."""
        self.warm_up(side, number)
        if part is not Part.COLD and not self.kept.of(part, side, number):
            edit = uuid.uuid4().hex[:8]
            self.record(lambda: [self._build(part, side, number, self.mark(side, number), edit)])

    def warm_up(self, side: Side, number: int) -> None:
        """Makes sure that the engine has the round's build in its caches; the first one is the cold build."""
        if (number, side) in self.warm:
            return
        if self.kept.of(Part.COLD, side, number):
            self._build(Part.NOTHING, side, number, self.mark(side, number))
        else:
            mark = uuid.uuid4().hex[:8]
            self.record(lambda: [self._build(Part.COLD, side, number, mark)])
        self.warm.add((number, side))

    def mark(self, side: Side, number: int) -> str:
        """Returns the mark of a side's builds in a round."""
        return self.kept.of(Part.COLD, side, number)[0].mark

    def images(self, parts: Sequence[Part], side: Side, number: int) -> list[str]:
        """Returns the images of these parts, all of one round, as only those share layers.

        They are those of the newest round that the engine still has, else they are built in this one.
        """
        for known in sorted({one.round for one in self.kept.measurements}, reverse=True):
            found = self._existing(parts, side, known)
            if found:
                return found
        for part in parts:
            self.measure(part, side, number)
        mark = self.mark(side, number)
        return self._existing(parts, side, number) or [self._build(part, side, number, mark).image for part in parts]

    def _existing(self, parts: Sequence[Part], side: Side, number: int) -> list[str]:
        """Returns the images of these parts; none unless the engine has all."""
        found = [made.image for part in parts for made in self.kept.of(part, side, number)]
        return found if len(found) == len(parts) and all(map(self.engine.has_image, found)) else []

    def forget(self, number: int) -> int:
        """Removes what the builds of a round left in the build cache; returns the freed bytes."""
        marks = [self.mark(side, number) for side in Side if self.kept.of(Part.COLD, side, number)]
        self.warm.difference_update({(number, side) for side in Side})
        return sum(self.engine.forget_build_steps(uncached.variable(mark)) for mark in marks)

    def _build(self, part: Part, side: Side, number: int, mark: str, edit: str = "") -> Measurement:
        prepared = self.later if part is Part.BUMP else self.first
        recipe = contexts.recipe(side, prepared, root=self.root, mark=mark, part=part, edit=edit)
        seen = Seen()
        before = {image.id for image in self.engine.images(reference=REPOSITORY)}

        def on_event(event: buildkit.Event) -> None:
            seen.add(event)
            self.on_event(event)

        plan = prepared.plan
        tag = f"{REPOSITORY}:{plan.variant}-{side}-{prepared.source.tag}"
        if part in EDITS:
            tag += "-edited"
        image, seconds, compiled = local.build_context(
            self.engine,
            recipe.write,
            dockerfile=recipe.dockerfile,
            target=recipe.target,
            arguments=recipe.arguments,
            labels=recipe.labels,
            platform=plan.platform,
            tags=(tag,),
            on_event=on_event,
        )
        if part in EDITS:
            self.engine.remove_image(tag)
        self._remove_untagged(before)
        return Measurement(
            metric=part,
            side=side,
            round=number,
            value=round(seconds, 2),
            mark=mark,
            image=image,
            steps=seen.steps(),
            said={"cache hits": compiled.hits, "compilations": compiled.calls} if compiled else {},
        )

    def _remove_untagged(self, before: set[str]) -> None:
        """Removes the images that lost their tag to the last build."""
        for image_id in before:
            try:
                if not self.engine.image(image_id).tags:
                    self.engine.remove_image(image_id)
            except ImageNotFoundError:
                continue


class Seen:
    """What the events of a build say."""

    def __init__(self) -> None:
        self._finished: list[buildkit.StepFinished] = []

    def add(self, event: buildkit.Event) -> None:
        """Takes an event."""
        if isinstance(event, buildkit.StepFinished) and not buildkit.is_internal(event.name):
            self._finished.append(event)

    def steps(self) -> tuple[Step, ...]:
        """Returns the steps in the order of their start."""
        first = min((step.started for step in self._finished if not step.cached), default=0.0)
        return tuple(
            Step(
                name=" ".join(step.name.split())[:160],
                started=0.0 if step.cached else round(step.started - first, 2),
                seconds=round(step.seconds, 2),
                cached=step.cached,
            )
            for step in sorted(self._finished, key=lambda step: step.started)
        )


def parts_of(only: str) -> tuple[Part, ...]:
    """Returns the parts of `--only`, all of them for an empty text; `Part` raises ValueError for another name."""
    chosen = {Part(name.strip()) for name in only.split(",")} if only else set(Part)
    return tuple(part for part in Part if part in chosen)


def order(number: int) -> tuple[Side, Side]:
    """Returns which side is measured first in a round: they take turns."""
    return (Side.OURS, Side.UPSTREAM) if number % 2 else (Side.UPSTREAM, Side.OURS)
