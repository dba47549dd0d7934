"""A server of bearer tokens for a registry, as GHCR and Docker Hub have one, and a proxy that answers as GHCR does.

Implements https://distribution.github.io/distribution/spec/auth/token/ and .../spec/auth/jwt/.
"""

from __future__ import annotations

import base64
import http.client
import http.server
import json
import secrets
import subprocess
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from tests.support.registries import PASSWORD, USER, Authority, Front, encrypt
from tests.support.servers import Handler

READER = "reader"
_LIFETIME_SECONDS = 300
_SERVICE = "a registry"
_ISSUER = "a token server"
_LEEWAY_SECONDS = 60
"""docker-registry 2.8 accepts a token this long after it expired (distribution's registry/auth/token/token.go)."""


class Asked(NamedTuple):
    """A request for a token; `user` is empty for an anonymous one."""

    user: str
    scope: str


class TokenServer(http.server.ThreadingHTTPServer):
    """Grants the writer whatever it asks for; grants the reader and anonymous clients `pull`.

    Attributes:
        asked: the granted requests, oldest first.
        tokens: their tokens.
    """

    daemon_threads = True

    def __init__(self, directory: Path, tls: Authority) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        encrypt(self, tls)
        self.asked: list[Asked] = []
        self.tokens: list[str] = []
        directory.mkdir()
        self._key, self._certificate = directory / "sign.key", directory / "sign.crt"
        new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tokens"]
        files = ["-keyout", str(self._key), "-out", str(self._certificate)]
        subprocess.run([*new, *files], check=True, capture_output=True)

    def registry_auth(self) -> str:
        """Returns the line of a registry's configuration that makes it accept this server's tokens."""
        realm = f"https://127.0.0.1:{self.server_address[1]}/token"
        options = f"realm: '{realm}', service: {_SERVICE}, issuer: {_ISSUER}, rootcertbundle: {self._certificate}"
        return f"auth: {{token: {{{options}}}}}"

    def grant(self, user: str, scope: str) -> str:
        """Returns a token for the allowed part of the scope, and records the request."""
        token = self.token(user, scope)
        self.asked.append(Asked(user, scope))
        self.tokens.append(token)
        return token

    def token(self, user: str, scope: str, *, lifetime: int = _LIFETIME_SECONDS) -> str:
        """Returns a token without recording it, valid for `lifetime` seconds; expired if that is negative."""
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        may = {"pull", "push"} if user == USER else {"pull"}
        access = [{"type": kind, "name": name, "actions": sorted(may & set(actions.split(",")))}] if scope else []
        now = int(time.time())
        return self._sign(
            {
                "iss": _ISSUER,
                "sub": user,
                "aud": _SERVICE,
                "iat": now,
                "nbf": now,
                "exp": now + lifetime - _LEEWAY_SECONDS,
                "jti": secrets.token_hex(8),
                "access": access,
            }
        )

    def _sign(self, claims: dict[str, object]) -> str:
        certificate = "".join(self._certificate.read_text(encoding="ascii").splitlines()[1:-1])
        header = {"typ": "JWT", "alg": "RS256", "x5c": [certificate]}
        signed = ".".join(_base64(json.dumps(part).encode()) for part in (header, claims))
        sign = ["openssl", "dgst", "-sha256", "-sign", str(self._key)]
        signature = subprocess.run(sign, input=signed.encode(), check=True, capture_output=True).stdout
        return f"{signed}.{_base64(signature)}"


class _Handler(Handler):
    server: TokenServer

    def do_GET(self) -> None:
        kind, _, secret = self.headers.get("Authorization", "").partition(" ")
        user, _, password = base64.b64decode(secret).decode().partition(":")
        if kind and (kind != "Basic" or user not in {USER, READER} or password != PASSWORD):
            self._answer(HTTPStatus.UNAUTHORIZED, {"errors": [{"code": "UNAUTHORIZED", "message": "who is that"}]})
            return
        scope = parse_qs(urlsplit(self.path).query).get("scope", [""])[0]
        self._answer(HTTPStatus.OK, {"token": self.server.grant(user, scope), "expires_in": _LIFETIME_SECONDS})

    def _answer(self, status: HTTPStatus, document: dict[str, object]) -> None:
        self.answer(status, json.dumps(document).encode())


class Forbidding(Front):
    """Answers as GHCR does to a token without the right to write: 403, not 401 with a challenge for a new token."""

    def __init__(self, registry: str, tls: Authority, before: Callable[[str, str], int | None]) -> None:
        super().__init__(registry, before, tls=tls)
        self.forbidden = 0

    def status(self, answer: http.client.HTTPResponse) -> int:
        """Returns the HTTP status to answer with."""
        if 'error="insufficient_scope"' not in answer.headers.get("Www-Authenticate", ""):
            return answer.status
        self.forbidden += 1
        return HTTPStatus.FORBIDDEN


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
