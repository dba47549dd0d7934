"""Converts docker-py's errors into this project's, and delays Ctrl-C while a request must not be abandoned."""

from __future__ import annotations

import contextlib
import http.client
import re
import signal
import socket
import ssl
import threading
import warnings
from collections.abc import Iterator

import docker.credentials.errors
import docker.errors
import requests

from base_images.errors import BaseImagesError, EngineError

ENGINE_ERRORS = (docker.errors.DockerException, docker.credentials.errors.StoreError, requests.RequestException)
"""What docker-py raises."""

# docker-py warns of a missing credential helper and then fails; the error says it.
warnings.filterwarnings("ignore", message="docker-credential-.* not installed", category=UserWarning)


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
    except ENGINE_ERRORS as error:
        if helper := credential_problem(error):
            problem, remedy = helper
            raise EngineError(f"{problem}, so the engine was not asked to {action}: {remedy}.") from error
        raise EngineError(
            f"The engine stopped answering ({cause(error)}) while asked to {action}: run the same command again when "
            "`docker version` shows the engine."
        ) from error


def credential_problem(error: BaseException) -> tuple[str, str] | None:
    """Returns what is wrong with docker's credential helper, and what to do; None if the error is another.

    The helper's own words are not quoted: they may contain the secret.
    """
    if not (found := next((e for e in _chain(error) if isinstance(e, docker.credentials.errors.StoreError)), None)):
        return None
    if missing := re.match(r"(docker-credential-\S+) not installed", str(found)):
        remedy = "install it, or take it out of credsStore and credHelpers in docker's config.json"
        return f"docker's credential helper {missing[1]} is not installed", remedy
    return "docker's credential helper failed", "`docker login REGISTRY` shows why"


def cause(error: BaseException) -> str:
    """Returns the reason why an engine gives no answer, such as `connection refused`, without quoting addresses."""
    chain = list(_chain(error))
    for kind, said in _CAUSES:
        # Errors of requests are of the kind OSError too, and have no number.
        found = [e for e in chain if isinstance(e, kind) and (kind is not OSError or getattr(e, "errno", None))]
        if found:
            return said or _own_words(found[0])
    return str(error).rstrip(".")


def _own_words(error: BaseException) -> str:
    match error:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted: {error.verify_message}"
        case ssl.SSLError():
            reason = (error.reason or "").lower().replace("_", " ")
            speaks = not re.search("wrong version|record layer|packet length|unknown protocol|http request", reason)
            return f"TLS failed: {reason or error.strerror}" if speaks else "it speaks no TLS"
        case docker.errors.APIError() if "HTTPS server" in str(error.explanation):
            return "it speaks TLS: set DOCKER_TLS_VERIFY and DOCKER_CERT_PATH"
        case docker.errors.APIError():
            status = error.response.status_code if error.response is not None else 0
            return f"what answers is no container engine: HTTP status {status}"
        case OSError() if error.strerror:
            return error.strerror.lower()
    return str(error).rstrip(".")


_CAUSES: tuple[tuple[type[BaseException], str], ...] = (
    (BaseImagesError, ""),
    (FileNotFoundError, "there is no such socket"),
    (PermissionError, "this user may not use its socket"),
    (ssl.SSLError, ""),
    (socket.gaierror, "its name does not resolve"),
    (ConnectionRefusedError, "connection refused: nothing listens there"),
    (TimeoutError, "no answer in time"),
    (requests.Timeout, "no answer in time"),
    (http.client.RemoteDisconnected, "it closed the connection"),
    (http.client.IncompleteRead, "it closed the connection"),
    (ConnectionError, ""),
    (http.client.HTTPException, "what answers is no container engine"),
    (requests.JSONDecodeError, "what answers is no container engine"),
    (docker.errors.APIError, ""),
    (OSError, ""),
    (LookupError, "what answers is no container engine"),
    (TypeError, "what answers is no container engine"),
)
"""Kinds of errors in the order in which they explain, and what they mean; empty: as they say themselves."""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and all that caused it; requests and urllib3 keep the cause among their arguments."""
    waiting, seen = [error], set()
    while waiting:
        link = waiting.pop(0)
        if id(link) not in seen:
            seen.add(id(link))
            yield link
            links = (link.__cause__, link.__context__, getattr(link, "reason", None), *link.args)
            waiting += [each for each in links if isinstance(each, BaseException)]


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
