"""The front door for checks: `nox -l`. Sessions run in the environment that nox itself is in."""

from __future__ import annotations

import json
import platform
import re
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "scripts"))

from base_images import untrusted  # noqa: E402
from base_images.adapters import programs  # noqa: E402
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
    """Mistakes and style of recipes, shell scripts, workflows and Python; known vulnerabilities of Python packages."""
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
    audit(session)


def lint_workflows(session: nox.Session) -> None:
    """GitHub's workflows: mistakes, with shellcheck in their shell, and what an attacker could use."""
    workflows = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(".github/workflows/*.yml"))
    run_program(session, "actionlint", "-shellcheck", find_program("shellcheck") or "", *workflows)
    run_program(session, "zizmor", "--offline", "--quiet", "--strict-collection", ".github")


AUDIT_SECONDS = 300.0
"""Time-out of pip-audit, which asks PyPI for one package after another."""

NO_ANSWER = re.compile(r"requests\.exceptions\.\w|_service\.interface\.ServiceError|your network may be blocking")
"""What pip-audit 2.10 complains of where PyPI does not answer, or somebody else does."""


def audit(session: nox.Session) -> None:
    """Known vulnerabilities of the locked packages, as PyPI lists them; skipped, and said so, where that cannot be had.

    PyPI's list and not OSV's, because whoever installs the packages from PyPI reaches it.
    """
    options = ("--disable-pip", "--require-hashes", "--format=json", "--desc=off", "--progress-spinner=off")
    command = [find_program("pip-audit") or "pip-audit", "--requirement", "requirements.lock", *options]
    session.log("pip-audit %s", " ".join(command[1:]))
    done = programs.run(command, directory=ROOT, timeout=AUDIT_SECONDS)
    complaint = "requests.exceptions.Timeout" if done.timed_out else done.stderr
    ok, sentences = judge_audit(done.stdout, complaint)
    told = [github.without_commands(" ".join(untrusted.printable(sentence).split())) for sentence in sentences]
    for sentence in told:
        session.log(sentence) if ok else session.warn(sentence)
    if ok is None:
        github.summarise("- lint: pip-audit did not audit every package, see the log")
    elif not ok:
        session.error("pip-audit found vulnerable packages, or failed: see above.")


def judge_audit(report: str, complaint: str) -> tuple[bool | None, list[str]]:
    """Returns whether the packages have no known vulnerability, None where that is not known, and why.

    pip-audit's exit code does not tell: it is 0 also where every package was skipped, and 1 for anything else.

    Args:
        report: what pip-audit printed, JSON where it got that far.
        complaint: its standard error.
    """
    try:
        packages = json.loads(report)["dependencies"]
        skipped = [one for one in packages if "skip_reason" in one]
        found = [
            f"{one['name']} {one['version']} has {', '.join([known['id'], *known['aliases']])}: "
            + (f"fixed in {', '.join(known['fix_versions'])}." if known["fix_versions"] else "there is no fix.")
            for one in packages
            for known in one.get("vulns", ())
        ]
    except (ValueError, KeyError, TypeError):
        last = next((line for line in reversed(complaint.splitlines()) if line.strip()), "it said nothing")
        if NO_ANSWER.search(complaint):
            return None, [f"pip-audit is skipped: PyPI's list of vulnerabilities cannot be had here ({last})."]
        return False, [f"pip-audit failed: {last}"]
    if found:
        remedy = (
            "Move them in requirements.lock with `--upgrade-package NAME` (CONTRIBUTING.md). For one without a fix, "
            "give pip-audit `--ignore-vuln ID` in noxfile.py, with the reason."
        )
        return False, [*found, remedy]
    if len(skipped) == len(packages):
        why = skipped[0]["skip_reason"] if skipped else "it found no package"
        return None, [f"pip-audit is skipped: PyPI's list of vulnerabilities cannot be had here ({why})."]
    if skipped:
        return None, [f"pip-audit skipped {one['name']}: {one['skip_reason']}." for one in skipped]
    return True, [f"pip-audit: none of {len(packages)} packages has a known vulnerability."]


@nox.session
def unit(session: nox.Session) -> None:
    """Tests that need no engine and no network; seconds."""
    run_tests(session, "tests/unit", *session.posargs)


@nox.session(name="image-cpu")
def image_cpu(session: nox.Session) -> None:
    """Builds the cpu image on the engine and tests it there, planted defects included."""
    run(session, "invoke", "build-local", "--variant", "cpu", "--operations")
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


@nox.session
def arm64(session: nox.Session) -> None:
    """Builds and tests cpu, or `-- VARIANT`, for arm64 by emulation, and publishes both platforms as a rehearsal."""
    if platform.machine() == "aarch64":
        session.skip("arm64 is not emulated on this machine: `nox -s image-cpu` and `nox -s smoke` test it.")
    for name in session.posargs or ["cpu"]:
        build = ("invoke", "build-local", "--variant", name, "--origin", "packages")
        run(session, *build)
        run(session, *build, "--platform", "arm64", "--smoke")
        run_tests(session, "tests/variants/test_platforms.py", "--variant", name)


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


@nox.session
def soak(session: nox.Session) -> None:
    """200 clients ask the local cpu image for ten minutes; after `--` what `invoke soak` takes."""
    run(session, "invoke", "soak", *session.posargs)


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
