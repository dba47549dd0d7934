"""What the recipes' own base images are replaced with where no registry can be reached. Pure values and functions."""

from __future__ import annotations

import re
from dataclasses import replace

from base_images.errors import SourceError
from base_images.roots import Packages, Root
from base_images.variants import Variant

WEB = Root(packages=("nodejs", "npm"))
"""The web base, the same for every variant."""


def of_version(variant: Variant, version: str) -> Packages | None:
    """Returns the packages for a version of the variant's toolkit, by its major version; None when it has none.

    Debian has one version of a toolkit; the package index has all those of its major version.
    """
    debian = variant.packages
    newer = debian.by_major.get(version.partition(".")[0]) if debian else None
    if newer is None:
        return debian

    def filled(root: Root) -> Root:
        return replace(root, wheels=replace(root.wheels, version=version)) if root.wheels else root

    arguments = {**newer.arguments, variant.version_argument: version}
    return replace(newer, build=filled(newer.build), runtime=filled(newer.runtime), arguments=arguments)


def require_version(variant: Variant, asked: str, has: str) -> None:
    """Checks that Debian's packages have the toolkit's version that was asked for; `has` may lack its last parts.

    Raises:
        SourceError: they have another one.
    """
    if not asked or not has or f"{asked}.".startswith(f"{has}."):
        return
    index = "".join(f", or {major}.x of the package index" for major in (variant.packages or Packages()).by_major)
    raise SourceError(
        f"Debian's packages have the toolkit of {variant.name} in version {has}, not {asked}: choose that one by "
        f"leaving --toolkit out{index}, or use --origin registries."
    )


def upstream_version(package_version: str) -> str:
    """Returns the upstream version of a Debian version: `12.4.131~12.4.1-2` → `12.4.1`, `6.4.3-5` → `6.4.3`.

    Debian versions a component of CUDA by its own version followed by `~` and the toolkit's version.
    """
    version = package_version.partition(":")[2] or package_version
    version = version.rpartition("-")[0] or version
    return re.split(r"[+]", version.rpartition("~")[2])[0]
