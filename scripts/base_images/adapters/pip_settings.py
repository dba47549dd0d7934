"""The settings of pip: its configuration files and PIP_* variables. `bootstrap.sh` runs pip by this module.

Imports nothing that is not in Python itself: it runs before anything is installed.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Mapping

from base_images.adapters import programs

CONNECTION = frozenset(
    {
        *("index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "keyring-provider"),
        *("cert", "client-cert", "proxy", "timeout", "default-timeout", "retries", "resume-retries"),
        *("cache-dir", "no-cache-dir"),
    }
)
"""Options that say where packages come from. Others, such as `user`, `target` and `constraint`, are not for ours."""


def read(command: str) -> dict[str, str]:
    """Returns the settings for a command of pip; none in an environment without pip."""
    # `pip config` has options of these names too, and another interpreter has other configuration files.
    environment = {**os.environ, "PIP_USER": "0", "PIP_GLOBAL": "0", "PIP_SITE": "0"}
    environment.pop("PIP_PYTHON", None)
    listed = programs.run([sys.executable, "-m", "pip", "config", "list"], environment=environment)
    return parse(listed.stdout, command)


def parse(listing: str, command: str) -> dict[str, str]:
    """Returns the settings for a command in the output of `pip config list`, by the names of pip's options.

    The section of the command wins over the global one, and variables win over both, as in pip's own order.
    """
    found: dict[str, str] = {}
    for section in ("global.", f"{command}.", ":env:."):
        for line in listing.splitlines():
            name, _, value = line.removeprefix(section).partition("=")
            if line.startswith(section) and value and (setting := ast.literal_eval(value)):  # pip ignores empty ones
                found[name] = setting
    return found


def for_connection(inherited: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    """Returns an environment in which pip has those of the settings that say where packages come from, and no other."""
    kept = {name: value for name, value in inherited.items() if not name.startswith(("PIP_", "PYTHONPATH"))}
    connection = {
        f"PIP_{name.replace('-', '_').upper()}": value for name, value in settings.items() if name in CONNECTION
    }
    return {**kept, **connection, "PIP_CONFIG_FILE": os.devnull}


if __name__ == "__main__":
    os.execve(  # noqa: S606 - this Python's own pip
        sys.executable, [sys.executable, "-m", "pip", *sys.argv[1:]], for_connection(os.environ, read(sys.argv[1]))
    )
