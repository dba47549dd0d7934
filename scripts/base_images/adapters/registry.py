"""Client of a container registry, over python-dxf: reads and writes manifests, blobs and tags.

Credentials are those of `docker login`, credential helpers included. They are sent over TLS only and appear in no
message.
"""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import docker.auth
import docker.errors
import requests
from dxf import DXF, DXFBase
from dxf.exceptions import DXFAuthInsecureError, DXFError, DXFUnauthorizedError, DXFUnexpectedStatusCodeError

from base_images.adapters import download
from base_images.adapters.download import host_certificates
from base_images.errors import RegistryError

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"

TIMEOUT_SECONDS = 60
REACH_SECONDS = 15
ATTEMPTS = 3
PAUSE_SECONDS = 1.0
"""Wait before a retry, multiplied by the number of attempts so far."""

CERTIFICATE_DIRECTORY = Path("/etc/docker/certs.d")
"""Docker's directory of certificate authorities of registries, as `<host>/ca.crt`."""

_DOCKER_HUB = "docker.io"
_DOCKER_HUB_HOST = "registry-1.docker.io"


@dataclass(frozen=True, kw_only=True)
class Descriptor:
    """An entry of an index.

    Attributes:
        size: size of the manifest in bytes.
        platform: such as `linux/arm64`; `unknown/unknown` for an attestation.
    """

    media_type: str
    digest: str
    size: int
    platform: str
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A manifest or an index with its exact bytes, of which `digest` is the digest."""

    digest: str
    media_type: str
    content: bytes

    @property
    def document(self) -> dict[str, Any]:
        """The parsed JSON."""
        parsed: dict[str, Any] = json.loads(self.content)
        return parsed

    @property
    def is_index(self) -> bool:
        """Whether this is an index, which lists manifests instead of layers."""
        return self.media_type in {OCI_INDEX, DOCKER_LIST}

    @property
    def children(self) -> tuple[Descriptor, ...]:
        """The entries of an index, in its order; empty for an image."""
        return tuple(
            Descriptor(
                media_type=entry["mediaType"],
                digest=entry["digest"],
                size=entry["size"],
                platform="{os}/{architecture}".format(**entry.get("platform", _UNKNOWN)),
                annotations=entry.get("annotations") or {},
            )
            for entry in self.document.get("manifests", ())
        )

    @property
    def layers_size(self) -> int:
        """Download size of an image in bytes: compressed layers and configuration."""
        document = self.document
        return sum(entry["size"] for entry in (document["config"], *document["layers"]))


_T = TypeVar("_T")

_UNKNOWN = {"os": "unknown", "architecture": "unknown"}


class Repository:
    """One repository of a registry, such as `ghcr.io/bodhisearch/llama.cpp`."""

    def __init__(self, name: str, client: DXF, *, attempts: int, ask_to_write: Callable[[], object]) -> None:
        self.name = name
        self._client = client
        self._attempts = attempts
        self._ask_to_write: Callable[[], object] | None = ask_to_write

    def tags(self) -> list[str]:
        """Returns all tags; empty when nothing was ever pushed."""
        return self._ask("list the tags", lambda: list(self._client.list_aliases())) or []

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
        digest = _digest(content)
        self._prepare_to_write()
        self._ask(
            f"point {reference} at {digest}",
            lambda: self._client.set_manifest(reference, content.decode()),
            missing=f"{self.name} lacks something that {reference} refers to, and nothing was changed: push it first.",
        )
        return digest

    def blob(self, digest: str) -> bytes:
        """Returns a blob, such as an image's configuration.

        Raises:
            RegistryError: the repository does not have it.
        """
        content = self._ask(f"read {digest}", lambda: b"".join(cast("Iterable[bytes]", self._client.pull_blob(digest))))
        if content is None:
            raise RegistryError(f"{self.name} has lost the blob {digest}: push the image again.")
        return content

    def put_blob(self, content: bytes) -> str:
        """Stores a small blob and returns its digest."""
        self._prepare_to_write()
        digest = _digest(content)
        # Bytes, not a file: python-dxf then sends the length, and repeats the request after a token has expired.
        data = cast("Iterable[bytes]", content)
        self._ask(
            "push a blob",
            lambda: self._client.push_blob(data=data, digest=digest),
            missing=f"{self.name} takes no uploads: check the registry's name.",
        )
        return digest

    def configuration(self, manifest: Manifest) -> dict[str, Any]:
        """Returns the configuration of an image (not of an index), such as architecture, labels and history."""
        parsed: dict[str, Any] = json.loads(self.blob(manifest.document["config"]["digest"]))
        return parsed

    def labels(self, manifest: Manifest) -> dict[str, str]:
        """Returns the labels of an image (not of an index)."""
        return dict(self.configuration(manifest).get("config", {}).get("Labels") or {})

    def platform_manifests(self, reference: str) -> dict[str, Manifest]:
        """Returns the image of each platform of a tag or a digest; empty when the repository does not have it.

        Raises:
            RegistryError: an index refers to a missing image.
        """
        top = self.manifest(reference)
        if top is None:
            return {}
        if not top.is_index:
            # An artifact that is not an image has neither field.
            return {"{os}/{architecture}".format(**{**_UNKNOWN, **self.configuration(top)}): top}
        found = {}
        for child in top.children:
            if child.platform == "unknown/unknown":  # an attestation
                continue
            manifest = self.manifest(child.digest)
            if manifest is None:
                raise RegistryError(
                    f"{self.name}:{reference} names {child.digest}, which is gone: push the image again."
                )
            found[child.platform] = manifest
        return found

    def _prepare_to_write(self) -> None:
        """Requests write access once: some registries answer "forbidden" to a token that was issued for reading."""
        if self._ask_to_write:
            self._ask("log in to write", self._ask_to_write)
            self._ask_to_write = None

    def _ask(self, what: str, question: Callable[[], _T], missing: str = "") -> _T | None:
        """Returns the answer, retrying while the registry is busy; "not found" is None, or an error with `missing`."""
        for attempt in range(1, self._attempts + 1):
            try:
                with _registry_errors(self.name, what):
                    return question()
            except _NotFoundError as error:
                if missing:
                    raise RegistryError(f"{missing} ({error})") from error
                return None
            except _BusyError:
                if attempt == self._attempts:
                    raise
                time.sleep(PAUSE_SECONDS * attempt)
        raise AssertionError


def open_repository(name: str, *, patient: bool = True) -> Repository:
    """Returns a repository, such as `ghcr.io/bodhisearch/llama.cpp` or `127.0.0.1:5000/llama.cpp`.

    A registry on loopback may use plain HTTP, as in docker; any other has to use TLS. Without `patient`, time-outs are
    short and nothing is retried.

    Raises:
        RegistryError: the registry does not answer.
    """
    host, path = _split(name)
    username, password = _credentials(host) or (None, None)

    actions: list[str] = []  # when empty, the registry's answer says which actions the request needs

    def log_in(client: DXFBase, response: requests.Response | None) -> None:
        client.authenticate(username, password, actions=actions, response=response)

    address = _DOCKER_HUB_HOST if host == _DOCKER_HUB else host
    authority = CERTIFICATE_DIRECTORY / host / "ca.crt"
    certificates = authority if authority.is_file() else host_certificates()
    client = _Client(
        address,
        path,
        log_in,
        insecure=is_loopback(name) and not _speaks_tls(address),
        tlsverify=str(certificates) if certificates else True,
        timeout=TIMEOUT_SECONDS if patient else REACH_SECONDS,
    )

    def ask_to_write() -> None:
        if username is not None:
            actions[:] = ["pull", "push"]  # also for the renewal of an expired token by a read
            log_in(client, None)

    return Repository(name, client, attempts=ATTEMPTS if patient else 1, ask_to_write=ask_to_write)


class _Client(DXF):
    """python-dxf, which sends every request by the module `requests` unless it is given a session."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._sessions = [_Requests()]  # type: ignore[list-item] # it takes the place of the module


class _Requests:
    """`requests.get` and so on, by a session that asks loopback addresses directly."""

    def __getattr__(self, method: str) -> Callable[..., requests.Response]:
        def ask(url: str, **arguments: Any) -> requests.Response:
            with download.Session() as session:
                return session.request(method, url, **arguments)

        return ask


def _credentials(host: str) -> tuple[str, str] | None:
    """Returns the user name and password for a registry in docker's configuration; None without.

    Raises:
        RegistryError: the configuration or the credential helper does not work, or holds another kind of token.
    """
    try:
        found = docker.auth.load_config().resolve_authconfig("" if host == docker.auth.INDEX_NAME else host)
    except (docker.errors.DockerException, OSError, ValueError) as error:
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
    return download.is_loopback(urlsplit(f"//{_split(name)[0]}").hostname)


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


def _manifest(response: requests.Response) -> Manifest:
    document = json.loads(response.content)
    # The field is optional in OCI manifests; the header is not.
    media_type = document.get("mediaType") or response.headers["Content-Type"].partition(";")[0]
    return Manifest(digest=_digest(response.content), media_type=media_type, content=response.content)


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class _NotFoundError(RegistryError):
    """The registry answered that an object does not exist."""


class _BusyError(RegistryError):
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
        raise RegistryError(
            f"The registry {host} did not let us {what} of {name}: log in with `docker login {host}` "
            "as somebody who may."
        ) from error
    except DXFUnexpectedStatusCodeError as error:  # from the request that asks how to authenticate
        raise _refusal(name, what, error.got, _NO_REASON) from error
    except requests.HTTPError as error:
        raise _refusal(name, what, error.response.status_code, _reason(error.response)) from error
    except requests.exceptions.SSLError as error:
        raise RegistryError(
            f"The registry {host} has a certificate that this machine does not trust: put its authority's into "
            f"{CERTIFICATE_DIRECTORY}/{host}/ca.crt, where docker looks too, or name a bundle in SSL_CERT_FILE."
        ) from error
    except (DXFError, ValueError, KeyError, TypeError, AttributeError) as error:  # JSON errors of requests included
        # The error itself may quote a token that cannot be sent.
        raise RegistryError(
            f"The registry {host} gave an answer that makes no sense to {what} of {name} ({type(error).__name__})."
        ) from error
    except requests.RequestException as error:
        raise _BusyError(
            f"The registry {host} does not answer ({type(error).__name__}): check the network and run the same "
            "command again."
        ) from error


def _refusal(name: str, what: str, status: int, reason: str) -> RegistryError:
    host = _split(name)[0]
    if status == requests.codes.not_found:
        return _NotFoundError(f"{name} has no such thing: {what}.")
    if status in {requests.codes.forbidden, requests.codes.unauthorized}:
        return RegistryError(
            f"The registry {host} forbids to {what} of {name}: `docker login {host}` as somebody who may."
        )
    if status >= requests.codes.server_error or status == requests.codes.too_many_requests:
        return _BusyError(
            f"The registry {host} could not {what} of {name} (HTTP status {status}): run the same command again."
        )
    return RegistryError(f"The registry {host} refused to {what} of {name} (HTTP status {status}): {reason}")


_NO_REASON = "it gives no reason."


def _reason(response: requests.Response) -> str:
    try:
        return "; ".join(f"{error['code']}: {error.get('message', '')}" for error in response.json()["errors"]) + "."
    except (ValueError, KeyError, TypeError):
        return _NO_REASON
