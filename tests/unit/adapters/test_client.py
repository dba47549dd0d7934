"""Why no engine answers: each cause is told, with real sockets that are no engine."""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import ssl
import warnings
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import docker.auth
import pytest

from base_images.adapters import client, ssh
from base_images.adapters.docker_errors import engine_errors
from base_images.errors import EngineError
from base_images.smoke.process import free_port
from tests.support import elsewhere, programs
from tests.support.registries import Authority, make_authority
from tests.support.servers import Handler, running


@pytest.fixture(autouse=True)
def _no_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere.without_configuration(tmp_path, monkeypatch)


def no_answer(monkeypatch: pytest.MonkeyPatch, host: str, *, timeout: int = 60) -> str:
    monkeypatch.setenv("DOCKER_HOST", host)
    with pytest.raises(EngineError) as caught:
        client.connect(timeout)
    return str(caught.value)


@contextlib.contextmanager
def answering(status: int, body: bytes, *, tls: Authority | None = None, wants_client: bool = False) -> Iterator[str]:
    """Serves an answer to everything, and yields HOST:PORT."""
    handler = type("Everything", (Handler,), {"do_GET": lambda self: self.answer(status, body)})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if tls:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tls.authority)
            context.load_cert_chain(tls.certificate, tls.key)
            context.verify_mode = ssl.CERT_REQUIRED if wants_client else ssl.CERT_NONE
            server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign] # a broken handshake is wanted here
        with running(server):
            yield f"127.0.0.1:{server.server_port}"


def test_no_socket_and_a_socket_without_listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "docker.sock"
    assert no_answer(monkeypatch, f"unix://{path}") == (
        f"No container engine answers at unix://{path} (there is no such socket): start it, or choose another with "
        "DOCKER_HOST or `docker context`."
    )
    with socket.socket(socket.AF_UNIX) as forgotten:
        forgotten.bind(str(path))
    assert "(connection refused: nothing listens there)" in no_answer(monkeypatch, f"unix://{path}")


def test_a_socket_that_this_user_may_not_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as private:
        private.bind(str(path))
        private.listen()
        path.chmod(0)
        for parent in (tmp_path, *tmp_path.parents[:2]):
            parent.chmod(parent.stat().st_mode | 0o711)
        me = os.geteuid()
        if me == 0:
            os.seteuid(65534)
        try:
            message = no_answer(monkeypatch, f"unix://{path}")
        finally:
            os.seteuid(me)
    assert "(this user may not use its socket): join the group that `ls -l " in message


def test_nothing_listens_or_the_name_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    message = no_answer(monkeypatch, f"tcp://me:secret@127.0.0.1:{port}")
    assert f"at tcp://127.0.0.1:{port} (connection refused: nothing listens there): start it" in message
    assert "(its name does not resolve)" in no_answer(monkeypatch, "tcp://no-such-host.invalid:2375")


def test_silence_ends_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        message = no_answer(monkeypatch, f"tcp://127.0.0.1:{silent.getsockname()[1]}", timeout=1)
    assert "(no answer in time)" in message


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b"<html>welcome</html>", "what answers is no container engine"),
        (200, b"[]", "what answers is no container engine"),
        (200, b"{}", "what answers is no container engine"),
        (404, b"no such page", "what answers is no container engine: HTTP status 404"),
        (400, b"Client sent an HTTP request to an HTTPS server.\n", "it speaks TLS: set DOCKER_TLS_VERIFY"),
    ],
)
def test_what_is_no_engine(monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, said: str) -> None:
    with answering(status, body) as address:
        assert f"({said}" in no_answer(monkeypatch, f"tcp://{address}")


class Greeting(socketserver.BaseRequestHandler):
    """Speaks first, as an ssh server does."""

    def handle(self) -> None:
        self.request.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")


def test_another_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Greeting) as server, running(server):
        message = no_answer(monkeypatch, f"tcp://127.0.0.1:{server.server_address[1]}")
    assert "what answers is no container engine" in message or "connection reset" in message


def test_tls_that_fails_says_why(tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    certificates = tmp_path / "certificates"
    certificates.mkdir()
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(certificates))
    # Of the environment, for other servers.
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.authority))
    another = make_authority(tmp_path / "another")
    (certificates / "ca.pem").write_bytes(another.authority.read_bytes())
    with answering(200, b"{}") as address:
        assert "(it speaks no TLS)" in no_answer(monkeypatch, f"tcp://{address}")
    with answering(200, b"{}", tls=authority) as address:
        assert "(its certificate is not trusted: " in no_answer(monkeypatch, f"tcp://{address}")
    (certificates / "ca.pem").write_bytes(authority.authority.read_bytes())
    with answering(200, b"{}", tls=authority) as address:
        assert "what answers is no container engine" in no_answer(monkeypatch, f"tcp://{address}")
    with answering(200, b"{}", tls=authority, wants_client=True) as address:
        message = no_answer(monkeypatch, f"tcp://{address}")
        assert "TLS failed: " in message or "connection" in message


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    with answering(200, b'{"ApiVersion": "1.41"}') as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://{proxy}")
        assert "connection refused" in no_answer(monkeypatch, f"tcp://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "echo 'Warning: Permanently added host' >&2; echo 'Permission denied (publickey).' >&2; exit 255",
            "(ssh ended with exit status 255: Permission denied (publickey))",
        ),
        ("echo 'sh: 1: docker: not found' >&2; exit 127", "exit status 127: sh: 1: docker: not found"),
        ("exit 1", "exit status 1: it says nothing"),
    ],
)
def test_what_ssh_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str) -> None:
    programs.script(tmp_path / "ssh", script)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    message = no_answer(monkeypatch, "ssh://me@host")
    assert said in message
    assert "at ssh://host (" in message


def test_without_ssh_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "(ssh cannot be run (No such file or directory))" in no_answer(monkeypatch, "ssh://host")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ssh://host", "-- host docker system dial-stdio"),
        ("ssh://me@Host:2222", "-l me -p 2222 -- Host docker system dial-stdio"),
        ("ssh://a%40b@[::1]:22/", "-l a@b -p 22 -- ::1 docker system dial-stdio"),
        (
            "ssh://host/run/user/1000/docker.sock",
            "-- host docker --host=unix:///run/user/1000/docker.sock system dial-stdio",
        ),
    ],
)
def test_the_command_is_that_of_docker(address: str, words: str) -> None:
    assert " ".join(ssh.command(address)) == f"ssh -o ConnectTimeout=30 -T {words}"


@pytest.mark.parametrize("installed", [False, True])
def test_a_credential_helper_that_fails_is_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_text('{"credsStore": "broken"}')
    if installed:
        programs.script(tmp_path / "docker-credential-broken", "echo the secret is hunter2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pytest has reset the filter of docker_errors
        with pytest.raises(EngineError) as caught, engine_errors("pull x"):
            docker.auth.load_config().resolve_authconfig("registry.example")
    said = "failed" if installed else "docker-credential-broken is not installed"
    beginning = f"docker's credential helper {said}, so the engine was not asked to pull x: "
    assert str(caught.value).startswith(beginning)
    assert "hunter2" not in str(caught.value)
