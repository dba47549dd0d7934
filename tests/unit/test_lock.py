"""requirements.lock, from which `scripts/bootstrap.sh` installs."""

from __future__ import annotations

import re
import tomllib
from itertools import chain

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from base_images import settings
from tests.support import documents

LOCK = (settings.ROOT / "requirements.lock").read_text(encoding="utf-8")


def test_the_lock_satisfies_pyproject() -> None:
    project = tomllib.loads((settings.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    locked = [
        (canonicalize_name(name), version) for name, version in re.findall(r"^([\w.-]+)==(\S+)", LOCK, re.MULTILINE)
    ]
    for text in (*project["project"]["dependencies"], *chain(*project["dependency-groups"].values())):
        wanted = Requirement(text)
        found = [version for name, version in locked if name == canonicalize_name(wanted.name)]
        assert found, f"{text}: make requirements.lock again, as CONTRIBUTING.md says"
        assert all(map(wanted.specifier.contains, found)), f"{text}: {found}"


def test_the_lock_names_the_command_that_contributing_shows() -> None:
    [command] = re.findall(r"^#    (uv .+)$", LOCK, re.MULTILINE)
    assert f"```shell\n{command}\n```" in documents.TEXTS["CONTRIBUTING.md"]
