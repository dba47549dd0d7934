"""The one exception family: everything a user can cause ends in one sentence and an exit code."""

from __future__ import annotations

from typing import ClassVar


class BaseImagesError(Exception):
    """Something a user can cause or mend; its text is one sentence that says what to do.

    Attributes:
        exit_code: what the process ends with.
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
    """An image reference that neither the engine nor a registry has."""

    exit_code = 4


class SourceError(BaseImagesError):
    """llama.cpp's source, or a base image, could not be had or is not what it should be."""

    exit_code = 5


class BuildError(BaseImagesError):
    """A build step failed; `detail` holds the step and the tail of its log."""

    exit_code = 6


class RepositoryError(BaseImagesError):
    """This project's own git repository is missing or cannot answer."""

    exit_code = 7


class LaunchError(BaseImagesError):
    """A container's server did not come up; `detail` holds the tail of its log."""

    exit_code = 8


class DeviceError(BaseImagesError):
    """This host lacks what an accelerator needs, or the accelerator has nothing of the kind."""

    exit_code = 9


class RegistryError(BaseImagesError):
    """A container registry cannot be reached, refuses, or holds something else than it should."""

    exit_code = 10
