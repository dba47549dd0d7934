"""What the recipes' own base images are replaced with where no registry can be reached. Pure values and functions."""

from __future__ import annotations

import re

from base_images.variants import Root

WEB = Root(packages=("nodejs", "npm"))
"""The web base, the same for every variant."""


def upstream_version(package_version: str) -> str:
    """Returns the upstream version of a Debian version: `12.4.131~12.4.1-2` → `12.4.1`, `6.4.3-5` → `6.4.3`.

    Debian versions a component of CUDA by its own version followed by `~` and the toolkit's version.
    """
    version = package_version.partition(":")[2] or package_version
    version = version.rpartition("-")[0] or version
    return re.split(r"[+]", version.rpartition("~")[2])[0]
