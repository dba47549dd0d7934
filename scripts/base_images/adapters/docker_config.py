"""Whether docker's config.json has the shape that docker-py takes for granted."""

from __future__ import annotations

from typing import Any

import docker.auth
import docker.errors
import docker.utils.config

from base_images.errors import EngineError

_OBJECTS_OF = {"auths": dict, "credHelpers": str, "proxies": dict, "HttpHeaders": str}
_TEXTS = ("credsStore", "currentContext")


def require_usable() -> None:
    """Returns if docker's config.json can be used, or is missing, or is no JSON, which docker ignores too.

    Raises:
        EngineError: a setting has another type than docker's. Its value is not quoted: it may be a secret.
    """
    path: Any = docker.utils.config.find_config_file()
    try:
        found: Any = docker.utils.config.load_general_config()
    except RecursionError as error:
        raise EngineError(f"{path} is nested too deeply to be docker's: correct it.") from error
    if not isinstance(found, dict):
        raise EngineError(f"{path} is not docker's: it is no JSON object; correct it.")
    odd = [name for name, kind in _OBJECTS_OF.items() if not _is_object_of(found.get(name) or {}, kind)]
    odd += [name for name in _TEXTS if not isinstance(found.get(name) or "", str)]
    if not odd and any(not isinstance(entry.get("auth", ""), str) for entry in (found.get("auths") or {}).values()):
        odd = ["auths"]
    if odd:
        raise EngineError(f"{path} is not docker's: {odd[0]} has another type; correct it.")
    try:
        docker.auth.load_config()
    except (ValueError, docker.errors.DockerException):  # "auth" is user:password in base64
        raise EngineError(f"{path} has an entry in auths that is not docker's: remove it and log in again.") from None


def _is_object_of(value: object, kind: type) -> bool:
    return isinstance(value, dict) and all(isinstance(entry, kind) for entry in value.values())
