"""Frees the disk of GitHub-hosted runners, which is full of toolchains that no build here uses."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from base_images.adapters import programs
from base_images.errors import UsageError

TOOLCHAINS = (
    "opt/ghc",
    "opt/google",
    "opt/hostedtoolcache/CodeQL",
    "opt/microsoft",
    "usr/lib/google-cloud-sdk",
    "usr/local/.ghcup",
    "usr/local/julia*",
    "usr/local/lib/android",
    "usr/local/share/boost",
    "usr/local/share/powershell",
    "usr/local/share/vcpkg",
    "usr/share/dotnet",
    "usr/share/swift",
)
"""Large toolchains that GitHub's Ubuntu 24.04 images install outside packages (github.com/actions/runner-images)."""


@dataclass(frozen=True, kw_only=True)
class Freed:
    """What was removed; `free` is the free bytes of the disk afterwards."""

    removed: tuple[Path, ...]
    free: int


def is_hosted(environment: Mapping[str, str]) -> bool:
    """Returns whether this is a GitHub-hosted runner, which serves one job; GitHub sets the variable in every job."""
    return environment.get("RUNNER_ENVIRONMENT") == "github-hosted"


def free(root: Path) -> Freed:
    """Removes the toolchains below `root`, which is `/` on a runner; missing ones are not an error.

    Raises:
        UsageError: a toolchain cannot be removed.
    """
    found = sorted(path for pattern in TOOLCHAINS for path in root.glob(pattern))
    if found:
        # Root owns them, and a job runs as a user with passwordless sudo.
        as_root = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]
        done = programs.run([*as_root, "rm", "--recursive", "--force", "--", *map(str, found)])
        if done.exit_code:
            raise UsageError(f"The toolchains cannot be removed ({done.last_words}): run this as a user who may.")
    return Freed(removed=tuple(found), free=shutil.disk_usage(root).free)
