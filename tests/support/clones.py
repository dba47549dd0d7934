"""A repository with the files of this checkout and a bare remote, for tests that commit, tag and push."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import git

from base_images import settings
from base_images.build import source
from base_images.build.inputs import Origin
from base_images.progress import silent
from base_images.recipes import mirror
from tests.support import commands

NARROWER = """
import dataclasses, functools, os
_HERE = Platform.of_architecture({{"x86_64": "amd64", "aarch64": "arm64"}}[os.uname().machine])
VARIANTS = tuple(dataclasses.replace(row, platforms=(_HERE,)) for row in VARIANTS if row.name in {names!r})
find = functools.partial(find, among=VARIANTS)
"""
"""Appended to variants.py: keeps some variants, for this machine's platform."""


def commit(repository: git.Repo, name: str, date: str) -> str:
    """Commits a file of this name and returns the commit."""
    Path(repository.working_dir, name).write_text(name)
    repository.git.add(name)
    dates = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
    repository.git.commit("--message", f"Add {name}", env=dates)
    return repository.head.commit.hexsha


def commit_all(directory: Path) -> git.Repo:
    """Commits all files of a directory, which becomes a repository if it is none."""
    repository = git.Repo.init(directory)
    repository.git.add("--all")
    repository.git.commit("--quiet", "--message", "Everything")
    return repository


def environment() -> dict[str, str]:
    """Returns an environment that names the pinned source tree."""
    # bootstrap.sh names the directory that these tests were started in; commands here start in the clone.
    foreign = {settings.DRY_RUN_VARIABLE, "BASE_IMAGES_CALLER_DIRECTORY"}
    inherited = {name: value for name, value in os.environ.items() if name not in foreign}
    return {**inherited, source.SOURCE_VARIABLE: str(pinned_tree())}


def pinned_tree() -> Path:
    """Returns the path of llama.cpp's pinned source tree."""
    pin = settings.load().pin
    return source.resolve(pin, path=None, origin=Origin.AUTO, root=settings.ROOT, listener=silent).path


def files() -> list[str]:
    """Returns the paths of this checkout's files, uncommitted ones included and ignored ones left out."""
    with git.Repo(settings.ROOT) as project:
        names = project.git.ls_files("--cached", "--others", "--exclude-standard", "-z").split("\0")
    return [name for name in names if (settings.ROOT / name).is_file()]


def copy_files(tree: Path) -> None:
    """Copies this checkout's files into a directory."""
    for name in files():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(settings.ROOT / name, tree / name)


def fresh_copy(directory: Path, *also: str) -> Path:
    """Copies tasks.py, the package and these files or directories, without a source tree."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("tasks.py", "pyproject.toml", "scripts", *also):
        if (settings.ROOT / name).is_dir():
            shutil.copytree(settings.ROOT / name, directory / name, ignore=ignored, dirs_exist_ok=True)
        else:
            directory.mkdir(exist_ok=True)
            shutil.copy(settings.ROOT / name, directory)
    return directory


@contextmanager
def clone(directory: Path) -> Iterator[git.Repo]:
    """Yields a repository with this checkout's files, uncommitted changes included, and a bare remote of it."""
    tree = directory / "clone"
    copy_files(tree)
    with git.Repo.init(directory / "remote.git", bare=True), commit_all(tree) as repository:
        repository.git.remote("add", "origin", str(directory / "remote.git"))
        repository.git.push("origin", "main")
        yield repository


def narrow(repository: git.Repo, names: tuple[str, ...]) -> None:
    """Commits and pushes a table with these variants only, for this machine's platform only."""
    with Path(repository.working_dir, "scripts/base_images/variants.py").open("a", encoding="utf-8") as table:
        table.write(NARROWER.format(names=names))
    write_differences(Path(repository.working_dir), names)
    repository.git.commit("--all", "--message", f"Only {', '.join(names)}")
    repository.git.push("origin", "main")


def write_differences(root: Path, names: tuple[str, ...]) -> None:
    """Keeps only the records that these recipes need: a record without a difference is an error."""
    upstream = mirror.upstream_texts(pinned_tree())
    records = mirror.load_records(root / mirror.DIFFERENCES)
    lines = []
    for comparison in mirror.check(upstream, mirror.our_texts(settings.ROOT), records, names).comparisons:
        for finding in comparison.findings:
            keys = json.dumps([finding.difference.key])
            lines.append(f"[[{comparison.variant}]]\nreason = {json.dumps(finding.reason)}\nkeys = {keys}\n")
    (root / mirror.DIFFERENCES).write_text("\n".join(lines), encoding="utf-8")


def invoke(
    repository: git.Repo,
    environment: Mapping[str, str],
    *arguments: str,
    stdin: int = subprocess.DEVNULL,
    timeout: float = 900,
) -> subprocess.CompletedProcess[str]:
    """Runs invoke in the repository, by default without a terminal."""
    command = [*commands.INVOKE, *arguments]
    return commands.run(command, cwd=repository.working_dir, env=environment, stdin=stdin, timeout=timeout)
