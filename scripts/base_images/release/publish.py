"""Publishing: pushes each platform's image, and the index that joins them as `<variant>-<version>`.

The machine that built a platform pushes it under a tag of its own; the machine that finds all platforms pushed writes
the index. Published tags never change, and the command is idempotent: run again, it finishes what was interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from base_images import versions
from base_images.adapters.engine import Engine
from base_images.adapters.manifest import OCI_INDEX, Manifest
from base_images.adapters.registry import Repository, is_loopback
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
    """Pushes the local build if its platform is missing, writes the index if none is, and yields the actions.

    The version is clean and released, and `commit` is its full hash, which the image must be built from. `connect`
    returns the engine with the local build; it is not called when every platform is published.

    Raises:
        RegistryError: the registry refuses, or has another image under a published tag.
        EngineError: the push failed.
    """
    merged = partial(Action, variant=variant.name, what="merge", target=_index(repository, variant, version))
    missing = _missing(repository, variant, version)
    pushed = None
    if missing:
        engine = connect()
        here = engine.platform()
        if here in missing:
            yield _push(engine, repository, variant, version, commit, here, dry_run=dry_run)
            pushed = here
            # A push takes minutes: other machines may have pushed meanwhile.
            missing = [platform for platform in _missing(repository, variant, version) if platform is not here]
    if missing:
        names = ", ".join(platform.docker for platform in missing)
        reason = (
            f"{names} is missing: run `invoke build-local --variant {variant.name}` and `invoke publish "
            f"--variant {variant.name}` on a machine of that kind."
        )
        yield merged(outcome=Outcome.WAITING, reason=reason)
    elif dry_run and pushed:
        yield merged(outcome=Outcome.WOULD)
    else:
        for platform in variant.platforms:
            _require_publishable(repository, variant, version, commit, platform)
        yield merge(repository, variant, version, dry_run=dry_run)


def anchor(repository: Repository, variant: Variant, version: Version, platform: Platform, digest: str) -> Action:
    """Tags an image that was pushed by its digest, so that the registry keeps it; an existing tag stays.

    Raises:
        RegistryError: the registry has no such digest, or refuses.
    """
    tag = _tag(variant, version, platform)
    pushed = partial(Action, variant=variant.name, what="push", target=f"{repository.name}:{tag}")
    if there := repository.digest(tag):
        return pushed(outcome=Outcome.ALREADY, digest=there)
    manifest = repository.manifest(digest)
    if manifest is None:
        raise RegistryError(f"{repository.name} has no {digest}, which was just built: run the same command again.")
    repository.put_manifest(tag, manifest.content)
    return pushed(outcome=Outcome.DONE, digest=digest)


def merge(repository: Repository, variant: Variant, version: Version, *, dry_run: bool = False) -> Action:
    """Writes the index of all platforms, whose images are published already.

    Raises:
        RegistryError: a platform's tag is not an image for that platform alone, another index of that version is
            published, or the registry refuses.
    """
    tag = versions.image_tag(variant.name, version)
    merged = partial(Action, variant=variant.name, what="merge", target=f"{repository.name}:{tag}")
    found = {platform: _anchored(repository, variant, version, platform) for platform in variant.platforms}
    content = index(repository, found)
    there = repository.manifest(tag)
    if there and there.content != content:
        raise RegistryError(
            f"{repository.name}:{tag} is published already and is another image ({there.digest}): a published "
            "version never changes, so commit again and release that."
        )
    if dry_run and not there:
        return merged(outcome=Outcome.WOULD)
    outcome = Outcome.ALREADY if there else Outcome.DONE
    digest = there.digest if there else repository.put_manifest(tag, content)
    return merged(outcome=outcome, digest=digest, reason=", ".join(platform.docker for platform in variant.platforms))


def index(repository: Repository, images: Mapping[Platform, Manifest]) -> bytes:
    """Returns the OCI index of images, in their order; the same images give the same bytes.

    A platform's manifest may itself be an index of the image and its attestations: all its entries are included. The
    annotations are the labels that all images share.
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
        labels += [repository.labels(image) for image in repository.platform_manifests(manifest.digest).values()]
    agreed = set.intersection(*(set(image.items()) for image in labels))
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
    """Raises unless an image may be published as a version.

    Raises:
        RegistryError: a label differs from the version's, or the bases do not come from registries.
    """
    if reasons := differences(labels, variant=variant, version=version, commit=commit, target=target):
        raise RegistryError(f"{target} cannot be published: {reasons[0]}")


def differences(
    labels: Mapping[str, str], *, variant: Variant, version: Version, commit: str, target: str
) -> list[str]:
    """Returns how an image's labels differ from a release build of this commit, a sentence each; empty for a match."""
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
    pushed = partial(Action, variant=variant.name, what="push", target=target)
    try:
        image = engine.image(local)
    except ImageNotFoundError as error:
        raise ImageNotFoundError(
            f"This engine has no {local}: build it with `invoke build-local --variant {variant.name}`."
        ) from error
    require_publishable(image.labels, variant=variant, version=version, commit=commit, target=target)
    if dry_run:
        return pushed(outcome=Outcome.WOULD)
    engine.tag(image.id, target)
    try:
        engine.push(target)
    finally:
        engine.remove_image(target)
    return pushed(outcome=Outcome.DONE, digest=repository.digest(tag) or "")


def _missing(repository: Repository, variant: Variant, version: Version) -> list[Platform]:
    return [platform for platform in variant.platforms if repository.digest(_tag(variant, version, platform)) is None]


def _require_publishable(
    repository: Repository, variant: Variant, version: Version, commit: str, platform: Platform
) -> None:
    """Raises RegistryError unless what another machine pushed may become a part of the version."""
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
