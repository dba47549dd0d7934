"""The front door for checks: `nox -l`. Sessions run in the environment that nox itself is in."""

from __future__ import annotations

import nox

# One locked environment for everything (scripts/bootstrap.sh): no session resolves packages of its own.
nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "unit", "image-cpu", "smoke-cpu"]


@nox.session
def lint(session: nox.Session) -> None:
    """Style and types."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session
def unit(session: nox.Session) -> None:
    """Tests that need no engine and no network; seconds."""
    session.run("pytest", "tests/unit", *session.posargs)


@nox.session(name="image-cpu")
def image_cpu(session: nox.Session) -> None:
    """Builds the cpu image on the engine and tests it there, planted defects included."""
    session.run("invoke", "build-local", "--variant", "cpu")
    session.run("pytest", "tests/image", *session.posargs)


@nox.session(name="smoke-cpu")
def smoke_cpu(session: nox.Session) -> None:
    """Starts llama-server in the local cpu image and asks it for the known answer."""
    session.run("pytest", "tests/smoke", *session.posargs)
