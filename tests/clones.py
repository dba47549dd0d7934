"""A repository with the files of this checkout and a bare remote, for tests that commit, tag and push."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import git

from base_images import settings, source
from base_images.origin import Origin
from base_images.progress import silent


def environment(directory: Path) -> dict[str, str]:
    """Returns an environment with the pinned source where it is already, and git without this machine's settings."""
    tree = source.resolve(settings.load().pin, path=None, origin=Origin.AUTO, root=settings.ROOT, listener=silent).path
    configuration = directory / "gitconfig"
    configuration.write_text("[user]\n\tname = A\n\temail = a@example.org\n[init]\n\tdefaultBranch = main\n")
    inherited = {name: value for name, value in os.environ.items() if name != settings.DRY_RUN_VARIABLE}
    return {
        **inherited,
        source.SOURCE_VARIABLE: str(tree),
        "GIT_CONFIG_GLOBAL": str(configuration),
        "GIT_CONFIG_NOSYSTEM": "1",
    }


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
    path = Path(repository.working_dir, "scripts/base_images/variants.py")
    path.write_text(
        path.read_text(encoding="utf-8")
        + f"""
_HERE = Platform.of_architecture({{"x86_64": "amd64", "aarch64": "arm64"}}[os.uname().machine])
VARIANTS = tuple(dataclasses.replace(one, platforms=(_HERE,)) for one in VARIANTS if one.name in {names!r})
""",
        encoding="utf-8",
    )
    text = path.read_text(encoding="utf-8").replace(
        "import difflib\n", "import dataclasses\nimport difflib\nimport os\n", 1
    )
    path.write_text(text, encoding="utf-8")
    repository.git.commit("--all", "--message", f"Only {', '.join(names)}")
    repository.git.push("origin", "main")


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
