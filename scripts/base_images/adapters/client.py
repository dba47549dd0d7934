"""docker-py's client of the engine that docker's own client would use, and why there is none."""

from __future__ import annotations

import contextlib
import socket

import docker
import docker.tls
import urllib3

from base_images.adapters import docker_config, ssh
from base_images.adapters import endpoint as endpoints
from base_images.adapters.docker_errors import ENGINE_ERRORS, cause
from base_images.adapters.endpoint import Endpoint
from base_images.adapters.http_session import host_certificates
from base_images.errors import EngineError

REQUEST_SECONDS = 600
"""For one response; saving or removing a large image takes a while before the first byte."""

REACH_SECONDS = 30
"""For a response that takes the engine no work."""

_ANY_VERSION = "1.41"
"""Of the API, until the engine has said its own; docker-py refuses much older ones."""


def connect(timeout: int) -> tuple[docker.DockerClient, Endpoint]:
    """Returns a client of the engine that `endpoint.resolve` finds, and where that is.

    Every response has to begin within `timeout` seconds.

    Raises:
        EngineError: no engine answers, or the chosen context cannot be used.
    """
    endpoint = endpoints.resolve()
    docker_config.require_usable()
    try:
        if endpoint.scheme == "unix":
            # docker-py (7.2.0) leaves a socket open that could not connect.
            with socket.socket(socket.AF_UNIX) as brief:
                brief.settimeout(timeout)
                brief.connect(endpoint.path)
        with contextlib.closing(make(endpoint, min(timeout, REACH_SECONDS), _ANY_VERSION)) as client:
            version = client.api.version(api_version=False)["ApiVersion"]
        return make(endpoint, timeout, version), endpoint
    except (*ENGINE_ERRORS, EngineError, OSError, LookupError, TypeError) as error:
        raise EngineError(_no_answer(endpoint, cause(error))) from error


def make(endpoint: Endpoint, timeout: int, version: str) -> docker.DockerClient:
    """Returns a client, which asks the engine nothing yet.

    Every response has to begin within `timeout` seconds; `version` is the API's.
    """
    tls: docker.tls.TLSConfig | bool = False
    if endpoint.tls:
        authority = endpoint.tls.authority or host_certificates()
        identity = endpoint.tls.identity
        tls = docker.tls.TLSConfig(
            client_cert=(str(identity[0]), str(identity[1])) if identity else None,
            ca_cert=str(authority) if authority else None,
            verify=endpoint.tls.verify,
        )
        if not endpoint.tls.verify:  # by DOCKER_TLS or the context, as for docker's client
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    # docker-py's own ssh is replaced, see `ssh.py`.
    address = endpoints.LOCAL if endpoint.scheme == "ssh" else endpoint.address
    client = docker.DockerClient(base_url=address, tls=tls, version=version, timeout=timeout)
    client.api.trust_env = False  # no proxy and no .netrc for the engine
    if endpoint.scheme == "ssh":
        client.api.mount("http+docker://", ssh.Adapter(ssh.command(endpoint.address)))
    return client


def _no_answer(endpoint: Endpoint, reason: str) -> str:
    where = f" at {endpoint.where}" if endpoint.where else ""
    if where and "://" not in where:  # the name of a context
        where += f" ({endpoints.without_userinfo(endpoint.address)})"
    if "may not use" in reason:
        remedy = f"join the group that `ls -l {endpoint.path}` shows, and log in again."
    elif endpoint.scheme == "ssh":
        remedy = "try `ssh HOST docker version`, or choose another with DOCKER_HOST or `docker context`."
    elif endpoint.where:
        remedy = "start it, or choose another with DOCKER_HOST or `docker context`."
    else:
        remedy = "start Docker, or set DOCKER_HOST, or let `sh scripts/bootstrap.sh …` install one."
    return f"No container engine answers{where} ({reason}): {remedy}"
