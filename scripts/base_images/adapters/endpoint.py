"""Which engine docker's own client would use, from the environment and docker's configuration.

The rules are those of docker's client 28 (`resolveContextName` in cli/command/cli.go): DOCKER_HOST, else the context in
DOCKER_CONTEXT, else `currentContext` of config.json, else the local engine. A choice that cannot be followed is an
error, never another engine.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from base_images.errors import EngineError

LOCAL = "unix:///var/run/docker.sock"

_DEFAULT = "default"
"""The context that stands for DOCKER_HOST or the local engine; it is not stored."""

_TLS_FILES = ("ca.pem", "cert.pem", "key.pem")


@dataclass(frozen=True, kw_only=True)
class Tls:
    """TLS of a connection.

    Attributes:
        authority: the file of the authority that signed the engine's certificate; None: this machine's authorities.
        identity: the files of this client's certificate and key; None: it has none.
        verify: whether the engine has to prove who it is.
    """

    authority: Path | None
    identity: tuple[Path, Path] | None
    verify: bool


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An engine's address.

    Attributes:
        address: `unix://PATH`, `tcp://HOST:PORT` or `ssh://[USER@]HOST[:PORT][PATH]`.
        tls: None without TLS.
        where: for messages, without user names and passwords; empty for the local default.
    """

    address: str
    tls: Tls | None
    where: str

    @property
    def scheme(self) -> str:
        """`unix`, `tcp` or `ssh`."""
        return self.address.partition("://")[0]

    @property
    def path(self) -> str:
        """The path of a Unix socket."""
        return self.address.partition("://")[2]


def resolve(environment: Mapping[str, str] = os.environ) -> Endpoint:
    """Returns the chosen engine; whether it answers is not asked.

    Raises:
        EngineError: the chosen context does not exist or cannot be read, or its address has an unknown form.
    """
    directory = _directory(environment)
    context, chosen_by = _context(environment, directory)
    if context != _DEFAULT:
        return _of_context(context, chosen_by, directory)
    host = environment.get("DOCKER_HOST", "").strip()
    verify = bool(environment.get("DOCKER_TLS_VERIFY"))
    tls = None
    if (verify or environment.get("DOCKER_TLS")) and not host.startswith(("unix:", "ssh:")) and host:
        tls = _tls(Path(environment.get("DOCKER_CERT_PATH") or directory), verify=verify)
        if verify and tls.authority is None:
            raise EngineError(
                f"DOCKER_TLS_VERIFY is set and there is no {environment.get('DOCKER_CERT_PATH') or directory}/ca.pem: "
                "name the directory of ca.pem, cert.pem and key.pem in DOCKER_CERT_PATH."
            )
    address = _address(host, "DOCKER_HOST", tls)
    return Endpoint(address=address, tls=tls, where=without_userinfo(address) if host else "")


def chosen(environment: Mapping[str, str] = os.environ) -> str:
    """Returns what selects the engine, for messages; empty for the local default. Raises nothing."""
    try:
        context, _ = _context(environment, _directory(environment))
    except EngineError:
        return "docker's configuration"
    return without_userinfo(environment.get("DOCKER_HOST", "").strip()) if context == _DEFAULT else _named(context)


def _named(context: str) -> str:
    return f"docker's context {context}"


def _directory(environment: Mapping[str, str]) -> Path:
    # Unlike Path.expanduser, this is no error for a user without a home.
    home = environment.get("HOME") or os.path.expanduser("~")  # noqa: PTH111
    return Path(environment.get("DOCKER_CONFIG") or Path(home, ".docker"))


def _context(environment: Mapping[str, str], directory: Path) -> tuple[str, str]:
    """Returns the name of the chosen context, and what chooses it."""
    if environment.get("DOCKER_HOST"):
        return _DEFAULT, "DOCKER_HOST"
    if name := environment.get("DOCKER_CONTEXT"):
        return name, "DOCKER_CONTEXT"
    path = directory / "config.json"
    try:
        name = _read(path).get("currentContext") or _DEFAULT
    except FileNotFoundError:
        return _DEFAULT, ""
    except (OSError, ValueError) as error:
        raise EngineError(
            f"{path} cannot be read ({_reason(error)}), so the engine that it chooses is not known: correct it, or "
            "name an engine in DOCKER_HOST."
        ) from error
    if not isinstance(name, str):
        raise EngineError(f"currentContext in {path} is not a name: correct it, or name an engine in DOCKER_HOST.")
    return name, str(path)


def _of_context(name: str, chosen_by: str, directory: Path) -> Endpoint:
    """Returns the engine of a stored context (docker/cli, cli/context/store: directories are named by the SHA-256)."""
    identifier = hashlib.sha256(name.encode()).hexdigest()
    path = directory / "contexts" / "meta" / identifier / "meta.json"
    another = "`docker context ls` lists those that do; choose one, or name an engine in DOCKER_HOST."
    try:
        endpoint = _read(path).get("Endpoints", {}).get("docker")
        if endpoint is None:
            raise EngineError(f"{_named(name)}, which {chosen_by} names, has no engine: choose another context.")
        host, unverified = endpoint.get("Host") or "", bool(endpoint.get("SkipTLSVerify"))
        host.strip()
    except FileNotFoundError as error:
        raise EngineError(f"{chosen_by} names the context {name!r}, which does not exist: {another}") from error
    except (OSError, ValueError, AttributeError) as error:
        raise EngineError(
            f"{_named(name)}, which {chosen_by} names, cannot be read ({path}: {_reason(error)}): make it again with "
            "`docker context create`, or name an engine in DOCKER_HOST."
        ) from error
    tls = _tls(directory / "contexts" / "tls" / identifier / "docker", verify=not unverified)
    used = tls if host.startswith("tcp:") and (tls.authority or tls.identity or unverified) else None
    return Endpoint(address=_address(host, _named(name), used), tls=used, where=_named(name))


def _tls(directory: Path, *, verify: bool) -> Tls:
    authority, certificate, key = (path if (path := directory / name).is_file() else None for name in _TLS_FILES)
    return Tls(authority=authority, identity=(certificate, key) if certificate and key else None, verify=verify)


def _address(host: str, source: str, tls: Tls | None) -> str:
    """Returns an address in full, as `ParseHost` of docker's client does (docker/cli, opts/hosts.go)."""
    scheme, separator, rest = host.strip().partition("://")
    if not separator:
        scheme, rest = ("tcp", scheme) if scheme else ("unix", "")
    if scheme == "unix":
        return f"unix://{Path(rest).absolute()}" if rest else LOCAL
    try:
        url = urlsplit(f"//{rest}")
        port = url.port
    except ValueError as error:
        raise EngineError(f"{source} has no valid address ({error}): write tcp://HOST:PORT or ssh://HOST.") from error
    if scheme == "tcp":
        name = url.hostname or "localhost"
        name = f"[{name}]" if ":" in name else name
        return f"tcp://{name}:{port or (2376 if tls else 2375)}{url.path.rstrip('/')}"
    if scheme != "ssh":
        raise EngineError(f"{source} names an engine by {scheme}://: only unix://, tcp:// and ssh:// can be used.")
    if url.password is not None:
        raise EngineError(f"{source} has a password, which ssh does not take from an address: use a key.")
    if not url.hostname:
        raise EngineError(f"{source} names no host: write ssh://USER@HOST.")
    return f"ssh://{rest}"


def without_userinfo(host: str) -> str:
    """Returns an address without its user name and password."""
    scheme, separator, rest = host.rpartition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"


def _read(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("not an object")  # noqa: TRY004 - as JSON's own error
    return content


def _reason(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else "not valid JSON, or not docker's"
