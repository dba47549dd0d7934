"""The exceptions for everything a user can cause: each has a one-sentence message and an exit code."""

from __future__ import annotations

from typing import ClassVar


class BaseImagesError(Exception):
    """An error that a user can cause or fix; the message is one sentence that says what to do.

    Attributes:
        exit_code: the exit code of the process.
        detail: lines printed under the sentence, such as the tail of a log; may be empty.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


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
