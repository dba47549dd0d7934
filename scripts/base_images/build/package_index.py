"""Files on the machine's package indexes: those of pip's configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

import pypi_simple
import requests

from base_images.adapters.download import TIMEOUT_SECONDS
from base_images.adapters.http_session import Session
from base_images.errors import SourceError

_NOT_AN_INDEX = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What pypi-simple raises for an answer that is no index."""


def package_indexes(settings: Mapping[str, str]) -> list[str]:
    """Returns the package indexes in pip's settings, the main one first."""
    main = settings.get("index-url", pypi_simple.PYPI_SIMPLE_ENDPOINT)
    return [main, *settings.get("extra-index-url", "").split()]


def find(
    name: str,
    choose: Callable[[Sequence[pypi_simple.DistributionPackage]], pypi_simple.DistributionPackage | None],
    *,
    what: str,
    indexes: Sequence[str],
    remedy: str = "",
) -> pypi_simple.DistributionPackage:
    """Returns the file of a package that `choose` takes from the first index where it finds one.

    Raises:
        SourceError: it finds none; the message calls the file `what` and ends in `remedy`.
    """
    problems = []
    for index in indexes:
        if not index.startswith(("http://", "https://")):
            continue
        host = urlsplit(index).hostname
        try:
            with pypi_simple.PyPISimple(index, session=Session()) as client:
                files = client.get_project_page(name, timeout=TIMEOUT_SECONDS).packages
        except (
            requests.RequestException,
            pypi_simple.NoSuchProjectError,
            pypi_simple.UnsupportedRepoVersionError,
            *_NOT_AN_INDEX,
        ) as error:
            problems.append(f"{host}: {type(error).__name__}")
            continue
        if found := choose(files):
            return found
        problems.append(f"{host}: no {what}")
    raise SourceError(
        f"The {what} is on no package index that can be reached ({'; '.join(problems)}): check pip's index-url{remedy}."
    )
