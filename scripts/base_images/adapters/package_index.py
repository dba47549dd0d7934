"""Files on the package indexes that pip is set up for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import urlsplit

import pypi_simple
import requests

from base_images.adapters.download import TIMEOUT_SECONDS
from base_images.adapters.http_session import Session
from base_images.errors import SourceError


@dataclass(frozen=True, kw_only=True)
class Sdist:
    """An sdist on an index.

    Attributes:
        sha256: as the index says it, hexadecimal; empty where it says none.
        uploaded: when it was uploaded, UTC; None where the index does not say.
    """

    version: str
    url: str
    sha256: str
    uploaded: datetime | None


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What the indexes have of a project.

    Attributes:
        sdists: by version, of the first index that has the version.
        hosts: the indexes that know the project.
        problems: why each of the others says nothing, such as `pypi.org: ConnectionError`.
    """

    sdists: Mapping[str, Sdist] = field(default_factory=dict)
    hosts: Sequence[str] = ()
    problems: Sequence[str] = ()


def package_indexes(settings: Mapping[str, str]) -> list[str]:
    """Returns the package indexes in pip's settings, the main one first."""
    main = settings.get("index-url", pypi_simple.PYPI_SIMPLE_ENDPOINT)
    return [main, *settings.get("extra-index-url", "").split()]


_NOT_AN_INDEX = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What pypi-simple raises for an answer that is no index."""


def _pages(name: str, indexes: Sequence[str]) -> Iterator[tuple[str, Sequence[pypi_simple.DistributionPackage] | str]]:
    """Yields the host of each index that is asked by HTTP, with its files of a project, or why it says nothing."""
    for index in indexes:
        if not index.startswith(("http://", "https://")):
            continue
        host = str(urlsplit(index).hostname)
        try:
            with pypi_simple.PyPISimple(index, session=Session()) as client:
                files = client.get_project_page(name, timeout=TIMEOUT_SECONDS).packages
        except (
            requests.RequestException,
            pypi_simple.NoSuchProjectError,
            pypi_simple.UnsupportedRepoVersionError,
            *_NOT_AN_INDEX,
        ) as error:
            yield host, f"{host}: {type(error).__name__}"
        else:
            yield host, files


def find(
    name: str,
    choose: Callable[[Sequence[pypi_simple.DistributionPackage]], pypi_simple.DistributionPackage | None],
    *,
    what: str,
    indexes: Sequence[str],
    remedy: str = "",
) -> pypi_simple.DistributionPackage:
    """Returns the file of a project that `choose` takes from the first index where it finds one.

    Raises:
        SourceError: it finds none; the message calls the file `what` and ends in `remedy`.
    """
    problems = []
    for host, files in _pages(name, indexes):
        if isinstance(files, str):
            problems.append(files)
        elif found := choose(files):
            return found
        else:
            problems.append(f"{host}: no {what}")
    raise SourceError(
        f"The {what} is on no package index that can be reached ({'; '.join(problems)}): check pip's index-url{remedy}."
    )


def sdists(name: str, indexes: Sequence[str]) -> Listing:
    """Returns the sdists of a project on those of the indexes that are asked by HTTP."""
    found: dict[str, Sdist] = {}
    hosts, problems = list[str](), list[str]()
    for host, files in _pages(name, indexes):
        if isinstance(files, str):
            problems.append(files)
            continue
        hosts.append(host)
        for each in files:
            if each.package_type == "sdist" and each.version and each.version not in found:
                sha256 = (each.digests or {}).get("sha256", "")
                found[each.version] = Sdist(
                    version=each.version, url=each.url, sha256=sha256, uploaded=each.upload_time
                )
    return Listing(sdists=found, hosts=hosts, problems=problems)
