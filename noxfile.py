"""The front door for checks: `nox -l`. Sessions run in the environment that nox itself is in."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "scripts"))

from base_images.adapters.programs import find_program  # noqa: E402
from base_images.cli import github  # noqa: E402
from base_images.variants import VARIANTS, Variant  # noqa: E402

# One locked environment for all sessions (scripts/bootstrap.sh): none resolves packages of its own.
nox.options.default_venv_backend = "none"

nox.options.sessions = ["lint", "unit", "image-cpu", "smoke"]


def run(session: nox.Session, *command: str) -> None:
    """Runs a Python module of nox's environment, whether or not that is on the PATH."""
    session.run(sys.executable, "-m", *command)


def run_tests(session: nox.Session, *arguments: str) -> None:
    """Runs pytest in a group of GitHub's log, and hides GitHub from the commands that tests run."""
    ended = "failed"
    try:
        with github.group(f"pytest {' '.join(arguments)}"):
            off = {"GITHUB_ACTIONS": "", "GITHUB_STEP_SUMMARY": ""}
            session.run(sys.executable, "-m", "pytest", *arguments, env=off)
        ended = "passed"
    finally:
        github.summarise(f"- {session.name}: tests {ended}")


def run_program(session: nox.Session, name: str, *arguments: str, silent: bool = False, **environment: str) -> str:
    """Runs a program of nox's environment, else of the machine, and returns its output."""
    return str(session.run(find_program(name) or name, *arguments, silent=silent, env=environment))


@nox.session
def lint(session: nox.Session) -> None:
    """Mistakes and style of the recipes, the shell scripts, the workflows and the Python, its types and its imports."""
    recipes = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("dockerfiles/*.Dockerfile"))
    run_program(session, "hadolint", "--no-color", *recipes)  # .hadolint.yaml says what is ignored, and why
    scripts = run_program(session, "shfmt", "--find", ".ci", "dockerfiles", "scripts", silent=True).split()
    run_program(session, "shfmt", "--diff", "--indent", "4", *scripts)
    if platform.machine() == "aarch64" and not find_program("shellcheck"):
        session.warn("shellcheck is skipped: PyPI has none for Linux on arm64; the distribution's would be run.")
    else:
        run_program(session, "shellcheck", *scripts)
    lint_workflows(session)
    run_program(session, "lint-imports", "--no-cache", "--no-logo", PYTHONPATH="scripts")
    run(session, "ruff", "check", ".")
    run(session, "ruff", "format", "--check", ".")
    run(session, "mypy")


def lint_workflows(session: nox.Session) -> None:
    """GitHub's workflows: mistakes, with shellcheck in their shell, and what an attacker could use."""
    workflows = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(".github/workflows/*.yml"))
    run_program(session, "actionlint", "-shellcheck", find_program("shellcheck") or "", *workflows)
    run_program(session, "zizmor", "--offline", "--quiet", "--strict-collection", ".github")


@nox.session
def unit(session: nox.Session) -> None:
    """Tests that need no engine and no network; seconds."""
    run_tests(session, "tests/unit", *session.posargs)


@nox.session(name="image-cpu")
def image_cpu(session: nox.Session) -> None:
    """Builds the cpu image on the engine and tests it there, planted defects included."""
    run(session, "invoke", "build-local", "--variant", "cpu")
    run_tests(session, "tests/image", "-m", "not lavapipe", *session.posargs)


def add_image_session(variant: Variant) -> None:
    """Adds the session that builds and checks another variant's image; it takes too long to run by default."""

    def build_and_check(session: nox.Session) -> None:
        run(session, "invoke", "build-local", "--variant", variant.name, *session.posargs)
        run_tests(session, "tests/variants/test_variant.py", "--variant", variant.name)

    build_and_check.__doc__ = (
        f"Builds the {variant.name} image on the engine, checks the contract and its fall-back to the CPU; needs the "
        "cpu image."
    )
    nox.session(name=f"image-{variant.name}")(build_and_check)


@nox.session(name="image-without-toolkit")
def image_without_toolkit(session: nox.Session) -> None:
    """Builds musa, intel and cann with Debian's compilers in the vendor's place, and tests their cpu/."""
    for variant in VARIANTS:
        if variant.packages is None:
            run_tests(session, "tests/variants/test_without_toolkit.py", "--variant", variant.name, *session.posargs)


for variant in VARIANTS:
    if variant.name != "cpu" and (ROOT / variant.dockerfile).exists():
        add_image_session(variant)


@nox.session
def smoke(session: nox.Session) -> None:
    """Smoke-tests the local cpu image, and shows that the test fails on what is broken and leaves nothing behind."""
    run_tests(session, "tests/smoke", "-m", "not lavapipe", *session.posargs)


@nox.session(name="smoke-lavapipe")
def smoke_lavapipe(session: nox.Session) -> None:
    """The local vulkan image on lavapipe, a device in software, and its release; minutes, so only when asked for."""
    run(session, "invoke", "smoke", "--variant", "vulkan", "--software-device")
    run_tests(session, "tests/smoke", "tests/image", "-m", "lavapipe", *session.posargs)


def add_smoke_session(variant: Variant) -> None:
    """Adds the session that tests an image of the variant on this host."""

    def smoke_test(session: nox.Session) -> None:
        run(session, "invoke", "smoke", "--variant", variant.name, *session.posargs)

    where = f"this host's {variant.title} device" if variant.device else "the CPU"
    smoke_test.__doc__ = (
        f"Whether the {variant.name} image computes right on {where}; after `--` what `invoke smoke` takes."
    )
    nox.session(name=f"smoke-{variant.name}")(smoke_test)


for variant in VARIANTS:
    add_smoke_session(variant)
