"""Client of a container registry, over python-dxf: reads and writes manifests, blobs and tags.

Credentials are those of `docker login`, credential helpers included. They appear in no message and are sent over TLS
only: to the registry's own host and port, and to the token server that its answer names, which for a registry on
loopback is on loopback too. No other server gets them, wherever a registry redirects or refers to.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import docker.auth
import docker.errors
import requests
from dxf import DXF, DXFBase
from dxf.exceptions import DXFAuthInsecureError, DXFError, DXFUnauthorizedError, DXFUnexpectedStatusCodeError

from base_images.adapters import docker_config, http_session
from base_images.adapters.http_session import BoundSession, ElsewhereError, LimitError, host_certificates
from base_images.adapters.manifest import (
    Manifest,
    OddDocumentError,
    digest_of,
    labels_of,
    parse_configuration,
    parse_manifest,
    platform,
)
from base_images.errors import EngineError, RegistryError

TIMEOUT_SECONDS = 60
REACH_SECONDS = 15
IMPATIENT_SECONDS = 60.0
"""For one answer without `patient`; a list of tags may have hundreds of pages."""

ATTEMPTS = 3
PAUSE_SECONDS = 1.0
"""Wait before a retry, multiplied by the number of attempts so far."""

CERTIFICATE_DIRECTORY = Path("/etc/docker/certs.d")
"""Docker's directory of certificate authorities of registries, as `<host>/ca.crt`."""

_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DOCKER_HUB = "docker.io"
_DOCKER_HUB_HOST = "registry-1.docker.io"


_WHO = "find out who pushed it, and push the right image or remove the tag."

_T = TypeVar("_T")


class Repository:
    """One repository of a registry, such as `ghcr.io/bodhisearch/llama.cpp`."""

    def __init__(
        self, name: str, client: DXF, *, attempts: int, seconds: float, ask_to_write: Callable[[], object]
    ) -> None:
        self.name = name
        self._client = client
        self._attempts = attempts
        self._seconds = seconds
        self._ask_to_write: Callable[[], object] | None = ask_to_write

    def tags(self) -> list[str]:
        """Returns all tags; empty when nothing was ever pushed."""
        return (
            self._ask("list the tags", lambda: [_tag(name) for name in self._client.list_aliases(iterate=True)]) or []
        )

    def digest(self, reference: str) -> str | None:
        """Returns the digest of a tag or a digest; None when the repository does not have it."""
        found = self._ask(f"look at {reference}", lambda: self._client.head_manifest_and_response(reference))
        if found is None:
            return None
        # The digest header is optional.
        return found[0] or (manifest.digest if (manifest := self.manifest(reference)) else None)

    def manifest(self, reference: str) -> Manifest | None:
        """Returns the manifest or index of a tag or a digest; None when the repository does not have it.

        Raises:
            RegistryError: the content does not match the digest.
        """
        found = self._ask(f"read {reference}", lambda: _manifest(self._client.get_manifest_and_response(reference)[1]))
        if found and reference.startswith("sha256:") and reference != found.digest:
            raise RegistryError(f"{self.name} answered {found.digest} when asked for {reference}: do not trust it.")
        return found

    def put_manifest(self, reference: str, content: bytes) -> str:
        """Stores a manifest under a tag, or by its digest alone, and returns its digest.

        Raises:
            RegistryError: the registry refused, or the tag points at something else afterwards.
        """
        digest = self.point(reference, content)
        if (actual := self.digest(reference)) != digest:
            raise RegistryError(
                f"{self.name}:{reference} points at {actual or 'nothing'} and not at {digest}, which was just pushed: "
                "somebody else writes at the same time; run the same command again."
            )
        return digest

    def point(self, reference: str, content: bytes) -> str:
        """Points a tag at a manifest, atomically, and returns the manifest's digest.

        Does not verify the tag afterwards; somebody else may move it at the same time.

        Raises:
            RegistryError: the registry refused.
        """
        if "mediaType" not in json.loads(content):
            raise RegistryError(f"The manifest of {self.name}:{reference} names no media type: it cannot be pushed.")
        digest = digest_of(content)
        self._prepare_to_write()
        self._ask(
            f"point {reference} at {digest}",
            lambda: self._client.set_manifest(reference, content.decode()),
            missing=f"{self.name} lacks something that {reference} refers to, and nothing was changed: push it first.",
        )
        return digest

    def blob(self, digest: str, *, size: int = http_session.ANSWER_BYTES) -> bytes:
        """Returns a blob, such as an image's configuration, of at most `size` bytes.

        Raises:
            RegistryError: the repository does not have it, or it is larger.
        """
        content = self._ask(
            f"read {digest}", lambda: b"".join(cast("Iterable[bytes]", self._client.pull_blob(digest))), size=size
        )
        if content is None:
            raise RegistryError(f"{self.name} has lost the blob {digest}: push the image again.")
        return content

    def put_blob(self, content: bytes) -> str:
        """Stores a small blob and returns its digest.

        Raises:
            RegistryError: it is too large to be read again, or the registry refused.
        """
        if len(content) > http_session.ANSWER_BYTES:
            raise RegistryError(
                f"{len(content) >> 20} MiB are too large for {self.name}, of which at most "
                f"{http_session.ANSWER_BYTES >> 20} are read again: shorten the logs in the report."
            )
        self._prepare_to_write()
        digest = digest_of(content)
        # Bytes, not a file: python-dxf then sends the length, and repeats the request after a token has expired.
        data = cast("Iterable[bytes]", content)
        self._ask(
            "push a blob",
            lambda: self._client.push_blob(data=data, digest=digest),
            missing=f"{self.name} takes no uploads: check the registry's name.",
        )
        return digest

    def configuration(self, manifest: Manifest) -> dict[str, Any]:
        """Returns the configuration of an image, such as architecture, labels and history.

        Raises:
            NotAnImageError: the manifest is of something else, or the configuration cannot be read.
        """
        what = f"{self.name}@{manifest.digest}"
        if not manifest.is_image:
            raise NotAnImageError(
                f"{what} is {'an index' if manifest.is_index else 'an artifact'} and no image: {_WHO}"
            )
        try:
            return parse_configuration(self.blob(manifest.document["config"]["digest"]))
        except OddDocumentError as error:
            raise NotAnImageError(f"The configuration of {what} cannot be read ({error}): {_WHO}") from error

    def labels(self, manifest: Manifest) -> dict[str, str]:
        """Returns the labels of an image (not of an index)."""
        return labels_of(self.configuration(manifest))

    def platform_manifests(self, reference: str) -> dict[str, Manifest]:
        """Returns the image of each platform of a tag or a digest; empty when the repository does not have it.

        Raises:
            NotAnImageError: there is something else, or an index has no image, or two of one platform.
            RegistryError: an index refers to a missing image.
        """
        top = self.manifest(reference)
        if top is None:
            return {}
        if not top.is_index:
            return {platform(self.configuration(top)): top}
        what = f"{self.name}:{reference}" if not reference.startswith("sha256:") else f"{self.name}@{reference}"
        found: dict[str, Manifest] = {}
        for named, digest in top.entries:
            if named == "unknown/unknown":  # an attestation
                continue
            manifest = self.manifest(digest)
            if manifest is None:
                raise RegistryError(f"{what} names {digest}, which is gone: push the image again.")
            if not manifest.is_image:
                raise NotAnImageError(f"{what} names {digest} for {named}, which is no image: {_WHO}")
            if named in found:
                raise NotAnImageError(f"{what} has two images for {named}: {_WHO}")
            found[named] = manifest
        if not found:
            raise NotAnImageError(f"{what} is an index without an image: {_WHO}")
        return found

    def _prepare_to_write(self) -> None:
        """Requests write access once: some registries answer "forbidden" to a token that was issued for reading."""
        if self._ask_to_write:
            self._ask("log in to write", self._ask_to_write)
            self._ask_to_write = None

    def _ask(
        self, what: str, question: Callable[[], _T], missing: str = "", *, size: int = http_session.ANSWER_BYTES
    ) -> _T | None:
        """Returns the answer, retrying while the registry is busy; "not found" is None, or an error with `missing`."""
        for attempt in range(1, self._attempts + 1):
            try:
                with _registry_errors(self.name, what), http_session.limited(size=size, seconds=self._seconds):
                    return question()
            except _NotFoundError as error:
                if missing:
                    raise RegistryError(f"{missing} ({error})") from error
                return None
            except BusyError:
                if attempt == self._attempts:
                    raise
                time.sleep(PAUSE_SECONDS * attempt)
        raise AssertionError


def open_repository(name: str, *, patient: bool = True, anonymous: bool = False) -> Repository:
    """Returns a repository, such as `ghcr.io/bodhisearch/llama.cpp` or `127.0.0.1:5000/llama.cpp`.

    A registry on loopback may use plain HTTP, as in docker; any other has to use TLS. Without `patient`, time-outs are
    short and nothing is retried. `anonymous` uses no credentials, whatever docker has.

    Raises:
        RegistryError: docker's credentials cannot be read, or the registry's host or port is none.
    """
    host, path = _split(name)
    address = _DOCKER_HUB_HOST if host == _DOCKER_HUB else host
    insecure = is_loopback(name) and not _speaks_tls(address)
    try:
        session = BoundSession(http_session.origin(f"{'http' if insecure else 'https'}://{address}"))
    except requests.exceptions.InvalidURL:
        session = None
    if session is None or "@" in host:
        raise RegistryError(f"{host.rpartition('@')[2]!r} is no registry: write it as ghcr.io or 127.0.0.1:5000.")
    username, password = (None if anonymous else _credentials(host)) or (None, None)

    actions: list[str] = []  # when empty, the registry's answer says which actions the request needs

    def log_in(client: DXFBase, response: requests.Response | None) -> None:
        with session.logging_in():
            client.authenticate(username, password, actions=actions, response=response)

    authority = CERTIFICATE_DIRECTORY / host / "ca.crt"
    certificates = authority if authority.is_file() else host_certificates()
    client = DXF(
        address,
        path,
        log_in,
        insecure=insecure,
        tlsverify=str(certificates) if certificates else True,
        timeout=TIMEOUT_SECONDS if patient else REACH_SECONDS,
    )
    client._sessions = [session]  # noqa: SLF001 - otherwise credentials go wherever an answer points

    def ask_to_write() -> None:
        if username is not None:
            actions[:] = ["pull", "push"]  # also for the renewal of an expired token by a read
            log_in(client, None)

    attempts, seconds = (ATTEMPTS, http_session.ANSWER_SECONDS) if patient else (1, IMPATIENT_SECONDS)
    return Repository(name, client, attempts=attempts, seconds=seconds, ask_to_write=ask_to_write)


def _credentials(host: str) -> tuple[str, str] | None:
    """Returns the user name and password for a registry in docker's configuration; None without.

    Raises:
        RegistryError: the configuration or the credential helper does not work, or holds another kind of token.
    """
    try:
        docker_config.require_usable()
        found = docker.auth.load_config().resolve_authconfig("" if host == docker.auth.INDEX_NAME else host)
    except EngineError as error:
        raise RegistryError(f"docker's credentials for {host} cannot be read: {error}") from error
    except (docker.errors.DockerException, OSError, ValueError, TypeError, AttributeError, LookupError) as error:
        # The helper's output and the file may contain the secret, so neither is quoted.
        raise RegistryError(
            f"docker's credentials for {host} cannot be read: look at ~/.docker/config.json and its credential helper "
            f"({type(error).__name__})."
        ) from None
    if not found:
        return None
    try:
        username, password = (found.get(key) or found[key.capitalize()] for key in ("username", "password"))
    except KeyError:
        raise RegistryError(
            f"docker holds no user name and password for {host}: log in with `docker login {host}` and an access token."
        ) from None
    return str(username), str(password)


def is_loopback(name: str) -> bool:
    """Returns whether the registry of a repository is on a loopback address, out of reach for others."""
    try:
        return http_session.origin(f"https://{_split(name)[0]}").is_loopback
    except requests.exceptions.InvalidURL:
        return False


def _split(name: str) -> tuple[str, str]:
    """`ubuntu` → (`docker.io`, `library/ubuntu`): a registry's name contains a dot or a port, or is localhost."""
    host, _, path = name.partition("/")
    if not path or not ("." in host or ":" in host or host == "localhost"):
        host, path = _DOCKER_HUB, name
    return host, path if "/" in path or host != _DOCKER_HUB else f"library/{path}"


def _speaks_tls(host: str) -> bool:
    """Returns whether the host answers TLS, with whatever certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    address = urlsplit(f"https://{host}")
    try:
        connection = socket.create_connection((address.hostname, address.port or 443), REACH_SECONDS)
    except OSError:
        return True  # nothing listens; the first request will report it
    with connection:
        try:
            context.wrap_socket(connection).close()
        except OSError:  # a plain-text answer, or a closed connection
            return False
    return True


def _tag(name: object) -> str:
    if not isinstance(name, str) or not _TAG.fullmatch(name):
        raise OddDocumentError("a tag is none")
    return name


def _manifest(response: requests.Response) -> Manifest:
    return parse_manifest(response.content, response.headers.get("Content-Type", "").partition(";")[0])


class NotAnImageError(RegistryError):
    """There is something else than an image or an index of images."""


class _NotFoundError(RegistryError):
    """The registry answered that an object does not exist."""


class ForbiddenError(RegistryError):
    """The registry does not let this user, or anybody without a name, do what was asked."""


class BusyError(RegistryError):
    """The registry did not answer, or is temporarily unable to."""


@contextmanager
def _registry_errors(name: str, what: str) -> Iterator[None]:
    """Converts errors of python-dxf and HTTP into `RegistryError`, without quoting requests or headers."""
    host = _split(name)[0]
    try:
        yield
    except DXFAuthInsecureError as error:
        raise RegistryError(
            f"The registry {host} wants credentials and speaks no TLS: they are not sent in the clear; give it TLS."
        ) from error
    except DXFUnauthorizedError as error:
        raise ForbiddenError(
            f"The registry {host} did not let us {what} of {name}: log in with `docker login {host}` as a user who may."
        ) from error
    except DXFUnexpectedStatusCodeError as error:  # from the request that asks how to authenticate
        raise _refusal(name, what, error.got, _NO_REASON) from error
    except (ElsewhereError, LimitError, OddDocumentError) as error:
        raise _distrusted(name, what, error) from error
    except requests.HTTPError as error:
        raise _refusal(name, what, error.response.status_code, _reason(error.response)) from error
    except requests.exceptions.SSLError as error:
        raise RegistryError(
            f"The registry {host} has a certificate that this machine does not trust: put its authority's into "
            f"{CERTIFICATE_DIRECTORY}/{host}/ca.crt, where docker looks too, or name a bundle in SSL_CERT_FILE."
        ) from error
    # JSON errors of requests are ValueErrors.
    except (DXFError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # The error itself may quote a token that cannot be sent.
        raise RegistryError(
            f"The registry {host} gave an answer that makes no sense to {what} of {name} ({type(error).__name__})."
        ) from error
    except requests.RequestException as error:
        raise BusyError(
            f"The registry {host} does not answer ({type(error).__name__}): check the network and run the same "
            "command again."
        ) from error


def _distrusted(name: str, what: str, error: Exception) -> RegistryError:
    host = _split(name)[0]
    if isinstance(error, ElsewhereError):
        return RegistryError(
            f"The registry {host} refers to another server, {error}, to {what} of {name}: that was not asked, because "
            f"credentials are for {host} alone (and for its token server, with TLS); its external URL may be wrong."
        )
    if isinstance(error, LimitError):
        return RegistryError(f"The registry {host} was not heard out to {what} of {name}: {error}.")
    return RegistryError(f"The registry {host} gave an answer that makes no sense to {what} of {name}: {error}.")


def _refusal(name: str, what: str, status: int, reason: str) -> RegistryError:
    host = _split(name)[0]
    if status == requests.codes.not_found:
        return _NotFoundError(f"{name} has no such thing: {what}.")
    if status in {requests.codes.forbidden, requests.codes.unauthorized}:
        return ForbiddenError(
            f"The registry {host} forbids to {what} of {name}: `docker login {host}` as a user who may."
        )
    if status >= requests.codes.server_error or status == requests.codes.too_many_requests:
        return BusyError(
            f"The registry {host} could not {what} of {name} (HTTP status {status}): run the same command again."
        )
    return RegistryError(f"The registry {host} refused to {what} of {name} (HTTP status {status}): {reason}")


_NO_REASON = "it gives no reason."
_REASON_LENGTH = 1000


def _reason(response: requests.Response) -> str:
    try:
        reasons = "; ".join(f"{error['code']}: {error.get('message', '')}" for error in response.json()["errors"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return _NO_REASON
    return f"{reasons[:_REASON_LENGTH]}." if reasons else _NO_REASON
