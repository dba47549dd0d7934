"""Builds a variant by `docker buildx bake`; to publish it, only for the platforms that the registry lacks."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from base_images import versions
from base_images.adapters import buildkit
from base_images.adapters.registry import Repository
from base_images.build import bakefile, compiler_cache, context, local
from base_images.build.inputs import Source
from base_images.build.plan import of_operations
from base_images.errors import UsageError
from base_images.release import publish
from base_images.release.actions import Action, Outcome
from base_images.settings import Settings
from base_images.variants import Platform, Variant
from base_images.versions import Target, Version


def bake(
    variant: Variant,
    platforms: Sequence[Platform],
    *,
    settings: Settings,
    root: Path,
    version: Version,
    repository: Repository | None,
    source: Callable[[], Source],
    builder: str,
    dry_run: bool,
    on_event: Callable[[buildkit.Event], None],
    operations: bool = False,
) -> Iterator[Action]:
    """Builds a variant and yields the actions; with a repository it skips platforms that are published already.

    Without a repository it loads the image into the local engine. `source` returns llama.cpp's source; it is not called
    when there is nothing to build. An empty `builder` is buildx's current one. A dry run builds all and keeps nothing.
    `operations` builds also the test of the image's operations.

    Raises:
        UsageError: the source is not the checkout's own, or not one that is published.
        SourceError: a base image is not available, or a runtime base has no glibc.
        BuildError: a step failed.
        RegistryError: the registry refuses.
    """
    missing: list[tuple[Platform, Target]] = []
    for platform, stage in itertools.product(platforms, Target if operations else (Target.RUNTIME,)):
        tag = versions.platform_tag(variant.name, version, platform.architecture, stage)
        if repository and (digest := repository.digest(tag)):
            target_name = f"{repository.name}:{tag}"
            yield Action(variant=variant.name, what="bake", target=target_name, outcome=Outcome.ALREADY, digest=digest)
        else:
            missing.append((platform, stage))
    if not missing:
        return
    tree = source()
    bakefile.require_own_source(tree.path, root)
    context.require_only(tree.files, root=root, source=tree.path)
    images = local.preview(
        variant, list(dict.fromkeys(platform for platform, _ in missing)), settings=settings, root=root, source=tree
    )
    of_platform = {image.platform: {Target.RUNTIME: image, Target.OPERATIONS: of_operations(image)} for image in images}
    plans = [of_platform[platform.docker][stage] for platform, stage in missing]
    if repository and any(plan.version != str(version) for plan in plans):
        raise UsageError(f"{tree.path} is not the pin as it was fetched, and only that is published: move it away.")
    file = bakefile.bake_file(plans, settings.registry, push=repository is not None, dry_run=dry_run)
    counter = compiler_cache.Counter()

    def read(event: buildkit.Event) -> None:
        counter.read(event)
        on_event(event)

    digests = bakefile.run(plans, file, root=root, builder=builder, on_event=read)
    for (platform, stage), plan in zip(missing, plans, strict=True):
        # buildx builds all of them at once, so the count is of all of them.
        compiled = str(counter.total or "") if (platform, stage) == missing[0] else ""
        if repository and not dry_run:
            done = publish.anchor(repository, variant, version, platform, digests[bakefile.target(plan)], stage)
            yield dataclasses.replace(done, reason=compiled)
        else:
            outcome = Outcome.WOULD if dry_run else Outcome.DONE
            reason = "\n".join(filter(None, (plan.platform, compiled)))
            yield Action(variant=variant.name, what="bake", target=plan.tags[0], outcome=outcome, reason=reason)
