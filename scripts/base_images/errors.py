"""The exceptions for everything a user can cause: each has a one-sentence message and an exit code."""

from __future__ import annotations

import re
from typing import ClassVar

_USERINFO = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)(?P<user>[^\s/?#:@]*)[^\s/?#]*@", re.IGNORECASE)
"""The beginning of a URL with a user name or password (RFC 3986, section 3.2.1)."""


def scrub(text: str) -> str:
    """Returns text whose URLs have no user name and password; `ssh://` keeps the user name, which is no secret."""
    return _USERINFO.sub(
        lambda found: found["scheme"] + (f"{found['user']}@" if found["scheme"].lower() == "ssh://" else ""), text
    )


class BaseImagesError(Exception):
    """An error that a user can cause or fix; the message is one sentence that says what to do.

    URLs in its texts lose user name and password.

    Attributes:
        exit_code: the exit code of the process.
        detail: lines printed under the sentence, such as the tail of a log; may be empty.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(scrub(message))
        self.detail = scrub(detail)


class UsageError(BaseImagesError):
    """The command line asks for something that does not exist."""

    exit_code = 2


class EngineError(BaseImagesError):
    """No container engine answers, or it cannot do what was asked."""

    exit_code = 3


class ImageNotFoundError(BaseImagesError):
    """Neither the engine nor a registry has the image."""

    exit_code = 4


class SourceError(BaseImagesError):
    """llama.cpp's source or a base image is unavailable or has the wrong content."""

    exit_code = 5


class BuildError(BaseImagesError):
    """A build step failed; `detail` has the step and the tail of its log."""

    exit_code = 6


class RepositoryError(BaseImagesError):
    """This project's own git repository is missing or cannot answer."""

    exit_code = 7


class LaunchError(BaseImagesError):
    """The server in a container did not start; `detail` has the tail of its log."""

    exit_code = 8


class DeviceError(BaseImagesError):
    """This host lacks what an accelerator needs, or the accelerator does not support the request."""

    exit_code = 9


class RegistryError(BaseImagesError):
    """A container registry is unreachable, denies access, or has unexpected content."""

    exit_code = 10
