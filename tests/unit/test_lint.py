"""`nox -s lint` finds defects planted in a copy of the checkout; also rules that no linter has."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import noxfile
import pytest
import yaml

from base_images import settings
from base_images.adapters import programs
from base_images.variants import VARIANTS
from tests.support import clones, commands

FILES = clones.files()
RECIPES = [variant.dockerfile for variant in VARIANTS if (settings.ROOT / variant.dockerfile).exists()]
SCRIPTS = [name for name in FILES if re.match(rb"#!.*\b(ba)?sh\n", (settings.ROOT / name).read_bytes())]
RECIPE = "dockerfiles/cpu.Dockerfile"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    clones.copy_files(tmp_path)
    return tmp_path


def lint(checkout: Path) -> str:
    """Returns the output of lint, which must fail."""
    done = commands.run(
        [sys.executable, "-m", "nox", "--session", "lint"], cwd=checkout, env={**os.environ, "PATH": "/usr/bin:/bin"}
    )
    assert done.returncode != 0
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("line", "defect", "finding"),
    [
        ("COPY llama.cpp/ .", "COPPY llama.cpp/ .", "unexpected 'C'"),
        ("FROM ${BUILD_BASE_IMAGE} AS build", "FROM ${BUILD_BASE_IMAGE}", "DL3022"),
        ("FROM ${BUILD_BASE_IMAGE} AS build", "FROM ${BUILD_BASE_IMAGE} AS web", "DL3024"),
        ('cp build/bin/llama-server "$directory"', "cp build/bin/llama-server $directory", "SC2086"),
        ("cp build/bin/llama-server", "cd build; cp bin/llama-server", "SC2164"),
        ("machine=aarch64 ;; esac", "machine=aarch64 ;; fi", "SC1"),
        ("WORKDIR /app", "WORKDIR app", "DL3000"),
        ('CMD [ "/usr/local/bin/llama-healthcheck" ]', "CMD a\n\nHEALTHCHECK CMD b", "DL3012"),
        ('ENTRYPOINT [ "/usr/local/bin/llama-entrypoint" ]', "ENTRYPOINT /usr/local/bin/llama-entrypoint", "DL3025"),
    ],
)
def test_a_defect_in_a_recipe_is_found(checkout: Path, line: str, defect: str, finding: str) -> None:
    recipe = checkout / RECIPE
    text = recipe.read_text(encoding="utf-8")
    assert line in text
    recipe.write_text(text.replace(line, defect), encoding="utf-8")

    assert re.search(rf"^{RECIPE}:\d+\S* {finding}", lint(checkout), re.MULTILINE)


def test_every_recipe_is_linted(checkout: Path) -> None:
    for name in RECIPES:
        with (checkout / name).open("a", encoding="utf-8") as recipe:
            recipe.write("WORKDIR app\n")

    found = lint(checkout)

    assert [name for name in RECIPES if not re.search(rf"^{name}:\d+ DL3000 ", found, re.MULTILINE)] == []


@pytest.mark.skipif(not programs.find_program("shellcheck"), reason="needs shellcheck: install it")
def test_every_shell_script_is_linted(checkout: Path) -> None:
    for name in SCRIPTS:
        with (checkout / name).open("a", encoding="utf-8") as script:
            script.write("cp $1 /tmp\n")

    found = lint(checkout)

    assert [name for name in SCRIPTS if f"In {name} line " not in found] == []
    assert found.count("SC2086 (info)") == len(SCRIPTS)


@pytest.mark.parametrize(
    ("name", "line", "defect", "finding"),
    [
        ("release", r"needs: plan\n", "needs: plans\n", 'needs job "plans" which does not exist'),
        ("variant", r'--variant "\$VARIANT"', "--variant $VARIANT", "SC2086"),
        ("variant", r'--variant "\$VARIANT"', '--variant "${{ inputs.variant }}"', "template-injection"),
        ("ci", r"checkout@\w+ # v", "checkout@v", "unpinned-uses"),
    ],
)
def test_a_defect_in_a_workflow_is_found(checkout: Path, name: str, line: str, defect: str, finding: str) -> None:
    if finding == "SC2086" and not programs.find_program("shellcheck"):
        pytest.skip("needs shellcheck: install it")
    workflow = checkout / ".github" / "workflows" / f"{name}.yml"
    text, count = re.subn(line, defect, workflow.read_text(encoding="utf-8"))
    assert count
    workflow.write_text(text, encoding="utf-8")

    assert finding in lint(checkout)


def test_an_unformatted_shell_script_is_found(checkout: Path) -> None:
    with (checkout / "scripts/bootstrap.sh").open("a", encoding="utf-8") as script:
        script.write("if true; then\n  true\nfi\n")

    assert "+    true" in lint(checkout)


@pytest.mark.parametrize(
    ("module", "planted", "finding"),
    [
        ("recipes/mirror", "import git", "base_images.recipes.mirror -> git"),
        (
            "smoke/model",
            "from base_images.contract import judge",
            "base_images.smoke.model -> base_images.contract.judge",
        ),
        (
            "build/plan",
            "from base_images.adapters import registry",
            "base_images.build.plan is not allowed to import dxf",
        ),
    ],
)
def test_an_import_against_the_direction_of_the_rooms_is_found(
    checkout: Path, module: str, planted: str, finding: str
) -> None:
    path = checkout / "scripts/base_images" / f"{module}.py"
    path.write_text(f"{path.read_text(encoding='utf-8')}{planted}\n", encoding="utf-8")

    assert finding in lint(checkout)


MODULES = {
    path.relative_to(settings.ROOT / "scripts/base_images").as_posix(): path.read_text(encoding="utf-8")
    for path in (settings.ROOT / "scripts/base_images").rglob("*.py")
}


def test_modules_have_at_most_520_lines() -> None:
    assert {name for name, text in MODULES.items() if len(text.splitlines()) > 520} == set()


def test_functions_import_only_in_cli() -> None:
    late = {
        name
        for name, text in MODULES.items()
        for function in ast.walk(ast.parse(text))
        if isinstance(function, ast.FunctionDef)
        and any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(function))
    }
    assert {name for name in late if not name.startswith("cli/")} == set()


def test_ignored_hadolint_rules_have_a_reason_and_are_needed(tmp_path: Path) -> None:
    nothing_ignored = tmp_path / "hadolint.yaml"
    nothing_ignored.write_text("ignored: []\n", encoding="utf-8")
    hadolint = programs.find_program("hadolint")
    assert hadolint
    done = subprocess.run(
        [hadolint, "--config", nothing_ignored, "--no-fail", "--format", "json", *RECIPES],
        cwd=settings.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    ignored = (settings.ROOT / ".hadolint.yaml").read_text(encoding="utf-8").partition("ignored:\n")[2]
    reasons = [re.fullmatch(r"  - (\w+) # .+", line) for line in ignored.splitlines()]

    assert all(reasons)
    assert [match[1] for match in reasons if match] == sorted({finding["code"] for finding in json.loads(done.stdout)})


class Session:
    """Records the commands of lint as words and files; runs only those whose output is a list of files."""

    def __init__(self) -> None:
        self.ran: dict[tuple[str, ...], set[str]] = {}

    def run(self, *words: str, silent: bool = False, env: Mapping[str, str] | None = None) -> str:
        if silent:
            return subprocess.run(words, cwd=settings.ROOT, capture_output=True, text=True, check=True).stdout
        files = {word for word in words if word in FILES}
        shown = [program(word) for word in words if word not in {sys.executable, "-m", ".", *files}]
        variables = [f"{name}={value}" for name, value in (env or {}).items()]
        shown = ["env", *variables, *shown] if variables else shown
        self.ran[tuple(shown)] = files or {name for name in FILES if name.endswith(".py")}
        return ""


def program(word: str) -> str:
    """Returns the name of a program without its directory, and any other word unchanged."""
    return Path(word).name if Path(word).parent.name == "bin" else word


@pytest.mark.skipif(not programs.find_program("shellcheck"), reason="needs shellcheck: install it")
def test_pre_commit_runs_what_lint_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noxfile, "audit", lambda _: None)  # needs the network, and is of no file that a commit changes
    session = Session()
    noxfile.lint(session)
    [local] = yaml.safe_load((settings.ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert {hook["language"] for hook in local["hooks"]} == {"system"}
    hooks = {tuple(map(program, hook["entry"].split())): hook for hook in local["hooks"]}

    assert hooks.keys() == session.ran.keys()
    for words, files in session.ran.items():
        if ".github" not in words:  # zizmor is given the directory
            assert {name for name in FILES if re.search(hooks[words]["files"], name)} == files, words
