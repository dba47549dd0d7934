"""A repository with the files of this checkout and a bare remote, for tests that commit, tag and push."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import git

from base_images import settings
from base_images.build import source
from base_images.build.inputs import Origin
from base_images.progress import silent
from base_images.recipes import mirror

NARROWER = """
import dataclasses, functools, os
_HERE = Platform.of_architecture({{"x86_64": "amd64", "aarch64": "arm64"}}[os.uname().machine])
VARIANTS = tuple(dataclasses.replace(one, platforms=(_HERE,)) for one in VARIANTS if one.name in {names!r})
find = functools.partial(find, among=VARIANTS)
"""
"""The end of a table of variants that leaves some of them, for this machine's platform."""


def environment(directory: Path) -> dict[str, str]:
    """Returns an environment with the pinned source where it is already, and git without this machine's settings."""
    configuration = directory / "gitconfig"
    configuration.write_text("[user]\n\tname = A\n\temail = a@example.org\n[init]\n\tdefaultBranch = main\n")
    # bootstrap.sh says where these tests were called from; a person in the clone is in the clone.
    foreign = {settings.DRY_RUN_VARIABLE, "BASE_IMAGES_CALLER_DIRECTORY"}
    inherited = {name: value for name, value in os.environ.items() if name not in foreign}
    return {
        **inherited,
        source.SOURCE_VARIABLE: str(pinned_tree()),
        "GIT_CONFIG_GLOBAL": str(configuration),
        "GIT_CONFIG_NOSYSTEM": "1",
    }


def pinned_tree() -> Path:
    """Returns llama.cpp's pinned source, where this checkout has it."""
    pin = settings.load().pin
    return source.resolve(pin, path=None, origin=Origin.AUTO, root=settings.ROOT, listener=silent).path


@contextmanager
def clone(directory: Path, environment: Mapping[str, str]) -> Iterator[git.Repo]:
    """Yields a repository with the files of this checkout, changes included, level with a bare remote."""
    tree = directory / "clone"
    with git.Repo(settings.ROOT) as project:
        names = project.git.ls_files("--cached", "--others", "--exclude-standard", "-z").split("\0")
    for name in filter(None, names):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        if (settings.ROOT / name).exists():
            shutil.copy2(settings.ROOT / name, tree / name)
    with git.Repo.init(directory / "remote.git", bare=True, initial_branch="main"), git.Repo.init(tree) as made:
        made.git.update_environment(**environment)
        made.git.switch("--orphan", "main")
        made.git.add("--all")
        made.git.commit("--message", "Everything")
        made.git.remote("add", "origin", str(directory / "remote.git"))
        made.git.push("origin", "main")
        yield made


def narrow(repository: git.Repo, names: tuple[str, ...]) -> None:
    """Commits and pushes a table of these variants alone, for this machine's platform alone."""
    with Path(repository.working_dir, "scripts/base_images/variants.py").open("a", encoding="utf-8") as table:
        table.write(NARROWER.format(names=names))
    write_differences(Path(repository.working_dir), names)
    repository.git.commit("--all", "--message", f"Only {', '.join(names)}")
    repository.git.push("origin", "main")


def write_differences(root: Path, names: tuple[str, ...]) -> None:
    """Leaves those intended differences that these recipes have: a record without a difference is an error."""
    upstream = mirror.upstream_texts(pinned_tree())
    records = mirror.load_records(root / mirror.DIFFERENCES)
    lines = []
    for comparison in mirror.check(upstream, mirror.our_texts(settings.ROOT), records, names).comparisons:
        for finding in comparison.findings:
            keys = json.dumps([finding.difference.key])
            lines.append(f"[[{comparison.variant}]]\nreason = {json.dumps(finding.reason)}\nkeys = {keys}\n")
    (root / mirror.DIFFERENCES).write_text("\n".join(lines), encoding="utf-8")


def invoke(
    repository: git.Repo, environment: Mapping[str, str], *arguments: str, timeout: float = 900
) -> subprocess.CompletedProcess[str]:
    """Runs invoke in the repository as a person does, without a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "invoke", *arguments],
        cwd=repository.working_dir,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
