"""Converts docker-py's errors into this project's, and delays Ctrl-C while a request must not be abandoned."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

import docker.errors
import requests

from base_images.errors import BaseImagesError, EngineError

TRANSPORT_ERRORS = (docker.errors.DockerException, requests.RequestException)


class NotFoundError(EngineError):
    """The engine answered that an object does not exist."""


@contextlib.contextmanager
def engine_errors(action: str) -> Iterator[None]:
    """Converts errors of docker-py and HTTP into `EngineError`, whose message names `action`."""
    try:
        yield
    except BaseImagesError:
        raise
    except (docker.errors.NotFound, docker.errors.ImageNotFound) as error:
        raise NotFoundError(f"The engine could not {action}: {error.explanation or error}") from error
    except docker.errors.APIError as error:
        if (
            error.response is not None
            and error.response.status_code == requests.codes.bad_request
            and ("invalid reference format" in str(error.explanation))
        ):
            raise NotFoundError(f"The engine could not {action}: the reference is not valid.") from error
        raise EngineError(f"The engine could not {action}: {error.explanation or error}") from error
    except TRANSPORT_ERRORS as error:
        raise EngineError(f"The engine stopped answering while asked to {action}: {error}") from error


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Delays Ctrl-C until the block has ended; a second Ctrl-C interrupts at once.

    The engine completes a request after its client disconnects: an interrupted create would leave a container behind,
    and an interrupted remove would leave its volume.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is interrupted, and only it may set a handler
        return
    delayed: list[int] = []

    def delay(number: int, _frame: object) -> None:
        if delayed:
            raise KeyboardInterrupt
        delayed.append(number)

    previous = signal.signal(signal.SIGINT, delay)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if delayed:
        signal.raise_signal(signal.SIGINT)
