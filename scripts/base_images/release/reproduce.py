"""Builds an image again, from the arguments in its labels, and compares what this project put into both.

The packages of the bases are the archives' of the day, so only the directories of `OURS` have to be the same.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from base_images.adapters import buildkit
from base_images.adapters.engine import Engine, Image
from base_images.build import local, uncached
from base_images.build.local import Built, Prepared
from base_images.build.plan import BuildPlan
from base_images.contract import layers
from base_images.contract.layers import Entry, Layer
from base_images.contract.rows_contents import DOCUMENTATION
from base_images.errors import SourceError, UsageError
from base_images.labels import Label
from base_images.recipes import dockerfile
from base_images.variants import find
from base_images.versions import Head, Target


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """An image and its second build; `differences` are sentences, none where they are the same."""

    image: str
    rebuilt: str
    version: str
    differences: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the two are the same."""
        return not self.differences

    def as_dict(self) -> dict[str, Any]:
        """Returns the report for JSON."""
        return {"ok": self.ok, **asdict(self)}


OURS = ("/app/", "/usr/local/bin/", f"{DOCUMENTATION}/")


def plan_of(image: Image, head: Head) -> BuildPlan:
    """Returns the plan that the image was built by.

    Raises:
        UsageError: the image is not ours, or not of this checkout's commit without changes.
    """
    labels = image.labels
    try:
        variant = find(labels[Label.VARIANT])
        arguments = {str(name): str(value) for name, value in json.loads(labels[Label.BUILD_ARGUMENTS]).items()}
        revision, version, platform = (labels[key] for key in (Label.REVISION, Label.VERSION, Label.PLATFORM))
    except (KeyError, ValueError, AttributeError) as error:
        raise UsageError("The image has no labels that say how it was built: only an image of ours can be.") from error
    if revision != head.commit:
        raise UsageError(f"The image was built from commit {revision}: check that out, `git checkout {revision}`.")
    if version != str(head.version) or head.version.dirty:
        raise UsageError("The image or this checkout has changes that no commit has: only a commit can be built again.")
    return BuildPlan(
        variant=variant.name,
        version=version,
        platform=platform,
        dockerfile=variant.dockerfile,
        target=Target.RUNTIME,
        arguments=arguments,
        labels=labels,
        tags=(),
    )


def fetch_bases(engine: Engine, plan: BuildPlan) -> None:
    """Pulls the base images of the plan that the engine lacks.

    Raises:
        SourceError: a base was made from packages, on another engine or another day.
        EngineError: a base cannot be pulled.
    """
    for name, reference in plan.arguments.items():
        if name.endswith(dockerfile.BASE_SUFFIX) and not engine.has_image(reference):
            if "@sha256:" not in reference:
                raise SourceError(
                    f"This engine has no {reference}, which the image was built on: such a base is made from the "
                    "packages of one day, so build the image again where it was built."
                )
            engine.pull(reference)


def build_again(engine: Engine, prepared: Prepared, *, root: Path, on_event: Callable[[buildkit.Event], None]) -> Built:
    """Builds an image without a cached command or object; what it leaves in the build cache is removed.

    Raises:
        BuildError: a step failed; the detail is the tail of its log.
        EngineError: the engine stopped answering.
    """
    mark = uuid.uuid4().hex[:8]
    try:
        return local.build(engine, prepared, root=root, on_event=on_event, mark=mark)
    finally:
        engine.forget_build_steps(uncached.variable(mark))


def differences(engine: Engine, first: Image, second: Image) -> Iterator[str]:
    """Yields a sentence for each path below `OURS`, and then for each of their layers, that two images do not share.

    Raises:
        EngineError: the engine failed, or sent an archive that cannot be read.
    """
    trees = [layers.read(engine.save(image.id), diff_ids=image.diff_ids) for image in (first, second)]
    one, two = ({path: entry for path, entry in layers.merge(tree).items() if path.startswith(OURS)} for tree in trees)
    yield from _of_files(one, two)
    yield from _of_layers([_own(tree, image.diff_ids) for tree, image in zip(trees, (first, second), strict=True)])


def _of_files(one: Mapping[str, Entry], two: Mapping[str, Entry]) -> Iterator[str]:
    for path in sorted(one.keys() | two.keys()):
        before, after = one.get(path), two.get(path)
        if before is None or after is None:
            yield f"{path} is only in the {'second' if before is None else 'first'}."
        elif before.digest != after.digest:
            yield f"{path} has another content: {before.size} and {after.size} bytes."
        elif (before.kind, before.target) != (after.kind, after.target):
            yield f"{path} is a {before.kind} {before.target} and a {after.kind} {after.target}."
        elif (before.mode, before.uid, before.gid) != (after.mode, after.uid, after.gid):
            yield (
                f"{path} has mode {before.mode:04o} of {before.uid}:{before.gid} and {after.mode:04o} of "
                f"{after.uid}:{after.gid}."
            )


def _own(tree: Sequence[Layer], diff_ids: Sequence[str]) -> list[str]:
    return [
        diff_id
        for layer, diff_id in zip(tree, diff_ids, strict=True)
        if any(entry.path.startswith("/app/") for entry in layer)
    ]


def _of_layers(owns: Sequence[Sequence[str]]) -> Iterator[str]:
    one, two = owns
    if len(one) != len(two):
        yield f"The first has {len(one)} layers with files below /app, the second {len(two)}."
        return
    for number, (before, after) in enumerate(zip(one, two, strict=True), start=1):
        if before != after:
            yield f"Layer {number} of {len(one)} with files below /app is {before} and {after}."
