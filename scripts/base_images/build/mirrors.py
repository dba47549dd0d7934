"""The Debian mirrors that bases are made from: this machine's own, or the archive of one day."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import requests

from base_images.adapters import http_session, programs
from base_images.build import packages
from base_images.errors import SourceError, UsageError
from base_images.progress import Listener, Progress
from base_images.roots import UNSTABLE, Root

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
"""Debian's archive keys, at the same path on the host and in the base."""

SNAPSHOT_VARIABLE = "BASE_IMAGES_DEBIAN_SNAPSHOT"
"""Environment variable with the time of a snapshot of Debian's archive, or the archive's address and the time."""

ARCHIVE = "http://snapshot.debian.org/archive"
"""Without TLS, as Debian's own mirrors: the bases have no certificates yet, and apt verifies signatures."""

_SNAPSHOT = re.compile(r"(?:(https?://[\w.:/-]+?)/)?(\d{8}T\d{6}Z)", re.ASCII)
_SECONDS = 15


@dataclass(frozen=True)
class Snapshot:
    """Debian's archive as it was at a time, such as `20261101T000000Z`."""

    archive: str
    time: str

    def uri(self, name: str) -> str:
        """Returns the address of a part of the archive, such as `debian`."""
        return f"{self.archive}/{name}/{self.time}/"


def snapshot() -> Snapshot | None:
    """Returns the snapshot that the environment names.

    Raises:
        UsageError: its value is no time of a snapshot.
    """
    value = os.environ.get(SNAPSHOT_VARIABLE, "")
    if not value:
        return None
    found = _SNAPSHOT.fullmatch(value)
    if found is None:
        raise UsageError(
            f"{SNAPSHOT_VARIABLE} is {value!r}: write a time such as 20261101T000000Z, or the address of an archive "
            f"before it, such as {ARCHIVE}/20261101T000000Z."
        )
    return Snapshot(found[1] or ARCHIVE, found[2])


def require(wanted: Snapshot, suites: Iterable[str]) -> None:
    """Checks that an archive has a snapshot.

    Raises:
        SourceError: it does not answer, or has no such suite at that time.
    """
    for suite in dict.fromkeys(suites):
        try:
            with http_session.Session() as http, http_session.limited():
                # The time need not be that of a snapshot: the archive redirects to the one before it.
                answer = http.head(
                    f"{wanted.uri('debian')}dists/{suite}/InRelease", timeout=_SECONDS, allow_redirects=True
                )
        except requests.RequestException as error:
            raise SourceError(
                f"{wanted.archive} does not answer ({type(error).__name__}): name another archive before the time in "
                f"{SNAPSHOT_VARIABLE}, or unset it to take the packages of the day."
            ) from error
        if not answer.ok:
            raise SourceError(
                f"{wanted.archive} has no Debian {suite} of {wanted.time} (HTTP status {answer.status_code}): choose "
                f"another time or archive in {SNAPSHOT_VARIABLE}, or unset it to take the packages of the day."
            )


def apt_sources(index_targets: str, root: Root) -> tuple[str, ...]:
    """Returns the sources.list lines of a root, from this machine's mirrors; empty without a Debian mirror.

    Args:
        index_targets: `label|URI` lines of the machine's package lists, from `apt-get indextargets`.
        root: the root file system to make.
    """
    mirrors: dict[str, str] = {}
    for line in index_targets.splitlines():
        label, _, uri = line.partition("|")
        mirrors.setdefault(label, uri)
    suites: dict[str, tuple[str, ...]] = {"Debian": (root.suite,)}
    if root.experimental:
        suites["Debian"] += ("experimental",)
    if root.suite != UNSTABLE:  # which has its updates in itself
        suites = {"Debian": (root.suite, f"{root.suite}-updates"), "Debian-Security": (f"{root.suite}-security",)}
    if "Debian" not in mirrors:
        return ()
    return tuple(
        f"deb [signed-by={KEYRING}] {mirrors[label]} {suite} {' '.join(root.components)}"
        for label, names in suites.items()
        if label in mirrors
        for suite in names
    )


def index_targets(listener: Listener) -> str:
    """Returns `label|URI` lines of a snapshot, or of Debian's package lists on this machine: of an update, without any.

    Raises:
        SourceError: there are none.
        UsageError: the environment names no time of a snapshot.
    """
    if wanted := snapshot():
        return f"Debian|{wanted.uri('debian')}\nDebian-Security|{wanted.uri('debian-security')}\n"
    query = ("apt-get", "indextargets", "--format", "$(LABEL)|$(REPO_URI)", "Created-By: Packages", "Origin: Debian")
    targets = programs.run(query).stdout
    if not apt_sources(targets, packages.WEB) and os.geteuid() == 0:
        apt(("update",), listener)
        targets = programs.run(query).stdout
    if not apt_sources(targets, packages.WEB):
        raise SourceError(
            "The packages origin needs a Debian mirror in apt's configuration, and this machine has none (or its "
            "lists were never fetched: `apt-get update`): use --origin registries."
        )
    return targets


def apt(arguments: tuple[str, ...], listener: Listener) -> None:
    """Runs apt-get on this machine, as root.

    Raises:
        SourceError: it failed.
    """
    what = f"apt-get {' '.join(arguments)}"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    listener(Progress(what=what, note="as root, because it is needed and missing"))
    outcome = programs.run(("apt-get", "--quiet", *arguments), environment=environment)
    if outcome.exit_code:
        raise SourceError(f"`{what}` failed: {outcome.last_words}", detail=outcome.stderr)
    listener(Progress(what=what, finished=True))
