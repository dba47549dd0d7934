"""Settings from `pyproject.toml` and the environment: the registry, this project's URL and the pin."""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from base_images.errors import UsageError, scrub

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, which is the root of the build context: `dockerfiles/` and the fetched `llama.cpp/`."""

REGISTRY_VARIABLE = "BASE_IMAGES_REGISTRY"
DRY_RUN_VARIABLE = "BASE_IMAGES_DRY_RUN"


class Follow(StrEnum):
    """Which of llama.cpp's tags `invoke bump-upstream --to newest` moves to."""

    BUILD = "build"
    RELEASE = "release"


@dataclass(frozen=True, kw_only=True)
class Pin:
    """The llama.cpp commit that every image of this checkout is built from.

    Attributes:
        repository: a URL for git alone; it may hold a password, so `errors.scrub` it before it is shown.
        tag: the commit's build, `b<number>`.
        release: the commit's release, `vX.Y.Z`; empty where llama.cpp has none at this commit.
        sdist: the source package that vendors the commit, such as `llama-cpp-python==0.3.35`; empty without one.
        sdist_sha256: its SHA-256, hexadecimal.
    """

    repository: str
    tag: str
    commit: str
    sdist: str
    sdist_sha256: str
    release: str = ""
    follow: Follow = Follow.BUILD

    @property
    def names(self) -> str:
        """The build, and the release where there is one."""
        return names(self.tag, self.release)


def names(tag: str, release: str) -> str:
    """Returns llama.cpp's names of one commit as text, such as `b11549/v0.6.0`."""
    return f"{tag}/{release}" if release else tag


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The table `[tool.base-images]` of `pyproject.toml`."""

    registry: str
    release_branch: str
    url: str
    pin: Pin


def load(root: Path = ROOT) -> Settings:
    """Returns the settings of the checkout at `root`, with the registry of BASE_IMAGES_REGISTRY if that is set.

    Raises:
        UsageError: pyproject.toml is missing, is not TOML, or lacks a key, or the registry is none.
    """
    path = root / "pyproject.toml"
    tables = read_toml(path)

    def text(*keys: str) -> str:
        value: Any = tables
        for key in ("tool", "base-images", *keys):
            if not isinstance(value, dict) or key not in value:
                raise UsageError(f"{path} lacks the key {key!r} under [tool.base-images]: restore it from git.")
            value = value[key]
        if not isinstance(value, str):
            raise UsageError(
                f"{path} has no text at the key {keys[-1]!r} under [tool.base-images]: restore it from git."
            )
        return value

    keys = ("repository", "tag", "release", "commit", "sdist", "sdist-sha256")
    pin = {name: text("llama-cpp", name) for name in keys}
    follow = text("llama-cpp", "follow")
    if follow not in {*Follow}:
        raise UsageError(f"{path} has {follow!r} at the key 'follow': write {' or '.join(Follow)}.")
    return Settings(
        registry=_registry(os.environ.get(REGISTRY_VARIABLE) or text("registry")),
        release_branch=text("release-branch"),
        url=scrub(text("url")),
        pin=Pin(**{name.replace("-", "_"): value for name, value in pin.items()}, follow=Follow(follow)),
    )


def read_toml(path: Path) -> dict[str, Any]:
    """Returns the tables of a file of this checkout.

    Raises:
        UsageError: it cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror}): restore it from git, or run this in a checkout of the project."
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 (byte {error.start + 1}): restore it from git.") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}.") from error


_COMPONENT = r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*"
_REGISTRY = re.compile(
    rf"(?:(?:[a-zA-Z0-9][\w.-]*|\[[0-9a-fA-F:]+\])(?::(?P<port>\d{{1,5}}))?/)?{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII
)
"""The name of a repository without tag and digest (distribution/reference, "Grammar")."""


def _registry(name: str) -> str:
    found = _REGISTRY.fullmatch(name)
    if found is None or not 0 < int(found["port"] or 1) <= 65535:  # noqa: PLR2004 - TCP
        # The name is not quoted: it may hold a password.
        raise UsageError(
            f"The registry in {REGISTRY_VARIABLE} or pyproject.toml is not the name of a repository: write it as "
            "ghcr.io/owner/name or 127.0.0.1:5000/name, without https:// and without a password, which `docker login` "
            "keeps."
        )
    return name


def dry_run() -> bool:
    """Returns whether BASE_IMAGES_DRY_RUN requests a dry run: any value except 0, false, no and empty."""
    return os.environ.get(DRY_RUN_VARIABLE, "").strip().lower() not in {"", "0", "false", "no"}
