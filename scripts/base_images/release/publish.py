"""Publishing: the image of each platform, and the index that makes one image of them, `<variant>-<version>`.

Each platform is pushed by the machine that built it, under a tag of its own. Who finds all of them there writes the
index. Nothing that was published changes: the same command again finishes what was cut off, or says that it is done.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from base_images import versions
from base_images.adapters.engine import Engine
from base_images.adapters.registry import OCI_INDEX, Manifest, Repository, is_loopback
from base_images.build.inputs import Origin
from base_images.errors import ImageNotFoundError, RegistryError
from base_images.labels import Label
from base_images.release.actions import Action, Outcome
from base_images.variants import Platform, Variant
from base_images.versions import Version

_ANNOTATION_PREFIX = "org.opencontainers.image."


def publish(
    repository: Repository,
    variant: Variant,
    *,
    version: Version,
    commit: str,
    connect: Callable[[], Engine],
    dry_run: bool = False,
) -> Iterator[Action]:
    """Pushes the local build where its platform is missing, writes the index when none is, and yields what was done.

    Args:
        repository: where to.
        variant: which image.
        version: which version, clean and released.
        commit: full hash of the version's commit, which the image has to be built from.
        connect: gives the engine that has the local build; not asked when every platform is there.
        dry_run: whether to change nothing.

    Raises:
        RegistryError: the registry refuses or holds another image under a tag that never changes.
        EngineError: the push broke off.
    """
    missing = _missing(repository, variant, version)
    pushed = None
    if missing:
        engine = connect()
        here = engine.platform()
        if here in missing:
            yield _push(engine, repository, variant, version, commit, here, dry_run=dry_run)
            pushed = here
            # A push takes minutes: others may have come in between.
            missing = [one for one in _missing(repository, variant, version) if one is not here]
    if missing:
        names = ", ".join(one.docker for one in missing)
        yield Action(
            variant=variant.name,
            what="merge",
            target=_index(repository, variant, version),
            outcome=Outcome.WAITING,
            reason=f"{names} is missing: run `invoke build-local --variant {variant.name}` and `invoke publish "
            f"--variant {variant.name}` on a machine of that kind.",
        )
    elif dry_run and pushed:
        target = _index(repository, variant, version)
        yield Action(variant=variant.name, what="merge", target=target, outcome=Outcome.WOULD)
    else:
        for platform in variant.platforms:
            _require_publishable(repository, variant, version, commit, platform)
        yield merge(repository, variant, version, dry_run=dry_run)


def anchor(repository: Repository, variant: Variant, version: Version, platform: Platform, digest: str) -> Action:
    """Gives an image that was pushed by its digest the tag that keeps it; a tag that is there already stays.

    Raises:
        RegistryError: the registry has no such digest, or refuses.
    """
    tag = _tag(variant, version, platform)
    target = f"{repository.name}:{tag}"
    if there := repository.digest(tag):
        return Action(variant=variant.name, what="push", target=target, outcome=Outcome.ALREADY, digest=there)
    manifest = repository.manifest(digest)
    if manifest is None:
        raise RegistryError(f"{repository.name} has no {digest}, which was just built: run the same command again.")
    repository.put_manifest(tag, manifest.content)
    return Action(variant=variant.name, what="push", target=target, outcome=Outcome.DONE, digest=digest)


def merge(repository: Repository, variant: Variant, version: Version, *, dry_run: bool = False) -> Action:
    """Writes the index of all platforms, whose images are there.

    Raises:
        RegistryError: a platform's tag is not of an image for it, an index of that version is there already and is
            another one, or the registry refuses.
    """
    tag = versions.image_tag(variant.name, version)
    found = {one: _anchored(repository, variant, version, one) for one in variant.platforms}
    content = index(repository, found)
    there = repository.manifest(tag)
    if there and there.content != content:
        raise RegistryError(
            f"{repository.name}:{tag} is published already and is another image ({there.digest}): a published "
            "version never changes, so commit again and release that."
        )
    if dry_run and not there:
        return Action(variant=variant.name, what="merge", target=f"{repository.name}:{tag}", outcome=Outcome.WOULD)
    return Action(
        variant=variant.name,
        what="merge",
        target=f"{repository.name}:{tag}",
        outcome=Outcome.ALREADY if there else Outcome.DONE,
        digest=there.digest if there else repository.put_manifest(tag, content),
        reason=", ".join(one.docker for one in variant.platforms),
    )


def index(repository: Repository, images: Mapping[Platform, Manifest]) -> bytes:
    """Returns the OCI index of images, in their order; the same images give the same bytes.

    What was pushed for a platform may be an index itself, of the image and of the attestations about it: those come
    along. The annotations are what the images' labels agree on.
    """
    entries: list[Mapping[str, Any]] = []
    labels: list[dict[str, str]] = []
    for manifest in images.values():
        if manifest.is_index:
            entries += manifest.document["manifests"]
        else:
            configuration = repository.configuration(manifest)
            platform = {
                name: configuration[name] for name in ("os", "architecture", "variant") if name in configuration
            }
            entries.append(
                {
                    "mediaType": manifest.media_type,
                    "digest": manifest.digest,
                    "size": len(manifest.content),
                    "platform": platform,
                }
            )
        labels += [repository.labels(one) for one in repository.platform_manifests(manifest.digest).values()]
    agreed = set.intersection(*(set(one.items()) for one in labels))
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": entries,
        "annotations": {name: value for name, value in sorted(agreed) if name.startswith(_ANNOTATION_PREFIX)},
    }
    return json.dumps(document, indent=2).encode()


def require_publishable(
    labels: Mapping[str, str], *, variant: Variant, version: Version, commit: str, target: str
) -> None:
    """Returns when an image may be published as a version.

    Raises:
        RegistryError: it is of something else, or its bases come from where a release's must not.
    """
    if reasons := differences(labels, variant=variant, version=version, commit=commit, target=target):
        raise RegistryError(f"{target} cannot be published: {reasons[0]}")


def differences(
    labels: Mapping[str, str], *, variant: Variant, version: Version, commit: str, target: str
) -> list[str]:
    """Returns, a sentence each, what says that an image is not what this commit builds for a release; none is right."""
    wanted = {Label.VARIANT: variant.name, Label.VERSION: str(version), Label.REVISION: commit}
    found = [
        f"its label {label} is {labels.get(label, '')!r} and not {value!r}: build it again from that commit."
        for label, value in wanted.items()
        if labels.get(label) != value
    ]
    if labels.get(Label.BUILD_ORIGIN) != Origin.REGISTRIES and not is_loopback(target):
        found.append(
            f"its bases are from {labels.get(Label.BUILD_ORIGIN, 'nowhere')!r}, and a release's come from registries "
            "(a registry on loopback takes others, to rehearse): build it with `--origin registries`."
        )
    return found


def _push(
    engine: Engine,
    repository: Repository,
    variant: Variant,
    version: Version,
    commit: str,
    platform: Platform,
    *,
    dry_run: bool,
) -> Action:
    local = _index(repository, variant, version)
    tag = _tag(variant, version, platform)
    target = f"{repository.name}:{tag}"
    try:
        image = engine.image(local)
    except ImageNotFoundError as error:
        raise ImageNotFoundError(
            f"This engine has no {local}: build it with `invoke build-local --variant {variant.name}`."
        ) from error
    require_publishable(image.labels, variant=variant, version=version, commit=commit, target=target)
    if dry_run:
        return Action(variant=variant.name, what="push", target=target, outcome=Outcome.WOULD)
    engine.tag(image.id, target)
    try:
        engine.push(target)
    finally:
        engine.remove_image(target)
    return Action(
        variant=variant.name,
        what="push",
        target=target,
        outcome=Outcome.DONE,
        digest=repository.digest(tag) or "",
    )


def _missing(repository: Repository, variant: Variant, version: Version) -> list[Platform]:
    return [one for one in variant.platforms if repository.digest(_tag(variant, version, one)) is None]


def _require_publishable(
    repository: Repository, variant: Variant, version: Version, commit: str, platform: Platform
) -> None:
    """What another machine pushed is looked at before it takes the version's name for good."""
    tag = _tag(variant, version, platform)
    for image in repository.platform_manifests(tag).values():
        require_publishable(
            repository.labels(image), variant=variant, version=version, commit=commit, target=f"{repository.name}:{tag}"
        )


def _anchored(repository: Repository, variant: Variant, version: Version, platform: Platform) -> Manifest:
    tag = _tag(variant, version, platform)
    manifest = repository.manifest(tag)
    if manifest is None or list(repository.platform_manifests(manifest.digest)) != [platform.docker]:
        raise RegistryError(
            f"{repository.name}:{tag} is not an image for {platform.docker} alone: find out who pushed it."
        )
    return manifest


def _tag(variant: Variant, version: Version, platform: Platform) -> str:
    return versions.platform_tag(variant.name, version, platform.architecture)


def _index(repository: Repository, variant: Variant, version: Version) -> str:
    return f"{repository.name}:{versions.image_tag(variant.name, version)}"
