"""A recipe whose commands no build has in its cache, and whose compiler cache is its own.

`nocache` of the engine would begin a new compiler cache in place of the one that all builds of this machine share.
"""

from __future__ import annotations

import re

MARK = "BASE_IMAGES_UNCACHED"
"""The variable in each command, by which the steps are found in the build cache (`Engine.forget_build_steps`)."""

FROM = re.compile(r"^FROM[ \t]+(\S+)([ \t]+AS[ \t]+(\S+))?[ \t]*$", re.MULTILINE | re.IGNORECASE)
"""The start of a stage: its base, and in the third group its name."""

_CACHE = re.compile(r"(--mount=type=cache,id=[\w-]+)")


def marked(text: str, mark: str) -> str:
    """Returns a recipe whose every RUN has a mark in its command, and whose cache mounts are the mark's own.

    So nothing is cached when the mark is new, and the caches of other builds stay as they are.
    """
    shell = f'SHELL ["/usr/bin/env", "{variable(mark)}", "/bin/sh", "-c"]'
    return _CACHE.sub(rf"\1-{mark}", FROM.sub(lambda found: f"{found[0]}\n{shell}", text))


def variable(mark: str) -> str:
    """Returns what the commands of a mark have in common."""
    return f"{MARK}={mark}"
