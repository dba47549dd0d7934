"""Manifests and indices of a registry, and whether what a registry sent is one.

Anybody who may push can push anything under any tag: artifacts that are no image, indices of indices, half a document.
Every document is checked here once, so that other modules can rely on the fields that they read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
_DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIGURATIONS = frozenset(
    {"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"}
)

MANIFEST_BYTES = 4 << 20
"""The largest manifest that registries take (distribution, `maxManifestBodySize`)."""

_LARGEST_SIZE = 1 << 63
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_UNKNOWN = "unknown"


class OddDocumentError(ValueError):
    """A document is not what it must be; the text says why and contains nothing of the document but its type."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A manifest or an index with its exact bytes, of which `digest` is the digest."""

    digest: str
    media_type: str
    content: bytes

    @property
    def document(self) -> dict[str, Any]:
        """The parsed JSON."""
        return parse_object(self.content)

    @property
    def is_index(self) -> bool:
        """Whether this is an index, which lists manifests instead of layers."""
        return self.media_type in {OCI_INDEX, DOCKER_LIST}

    @property
    def is_image(self) -> bool:
        """Whether this is an image, and neither an index nor another artifact."""
        return not self.is_index and self.document["config"]["mediaType"] in _CONFIGURATIONS

    @property
    def entries(self) -> tuple[tuple[str, str], ...]:
        """Platform and digest of each entry of an index; `unknown/unknown` for an attestation. Empty for an image."""
        entries = self.document.get("manifests") or ()
        return tuple((platform(entry.get("platform") or {}), entry["digest"]) for entry in entries)

    @property
    def attestations(self) -> dict[str, str]:
        """The digest of each image's attestations in an index, by the image's (BuildKit, attestation-storage.md)."""
        entries = self.document.get("manifests") or ()
        of_each = ((entry, (entry.get("annotations") or {}).get("vnd.docker.reference.digest")) for entry in entries)
        return {image: entry["digest"] for entry, image in of_each if image}

    @property
    def layers_size(self) -> int:
        """Download size of an image in bytes: compressed layers and configuration."""
        document = self.document
        return sum(entry["size"] for entry in (document["config"], *document["layers"]))

    @property
    def subject(self) -> str:
        """The digest of the image that this is an artifact of; empty for none."""
        return str((self.document.get("subject") or {}).get("digest", ""))


def digest_of(content: bytes) -> str:
    """Returns the digest by which a registry stores content."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def platform(fields: Mapping[str, str]) -> str:
    """Returns the platform that an index's entry or a configuration names, such as `linux/arm64`."""
    return f"{fields.get('os', _UNKNOWN)}/{fields.get('architecture', _UNKNOWN)}"


def parse_object(content: bytes) -> dict[str, Any]:
    """Returns a JSON object whose texts and numbers can be printed, written and computed with.

    Raises:
        OddDocumentError: it is not JSON, is nested too deeply, has NaN or lone surrogates, or is no object.
    """
    try:
        parsed = json.loads(content)
        json.dumps(parsed, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise OddDocumentError("it is no JSON that can be read") from error
    if not isinstance(parsed, dict):
        raise OddDocumentError("it is no JSON object")
    return parsed


def parse_manifest(content: bytes, media_type: str) -> Manifest:
    """Returns a manifest or an index, given the type that the registry names, which the document's own overrides.

    Raises:
        OddDocumentError: it is neither, or lacks a field that it must have, or has one of another type.
    """
    if len(content) > MANIFEST_BYTES:
        raise OddDocumentError(f"it has more than {MANIFEST_BYTES >> 20} MiB")
    document = parse_object(content)
    # The field is optional in OCI manifests; the header is not.
    media_type = _text(document.get("mediaType") or media_type, "its type")
    if media_type in {OCI_INDEX, DOCKER_LIST}:
        for entry in _list(document, "manifests"):
            _require_descriptor(entry, "an entry")
            _require_platform(entry.get("platform") or {})
            _require_texts(entry.get("annotations") or {}, "annotations")
    elif media_type in {OCI_MANIFEST, _DOCKER_MANIFEST}:
        for entry in (document.get("config"), *_list(document, "layers")):
            _require_descriptor(entry, "its configuration or a layer")
        if document.get("subject") is not None:
            _require_descriptor(document["subject"], "its subject")
    else:
        raise OddDocumentError(f"it is of the type {media_type[:100]!a}, which is neither an image nor an index")
    return Manifest(digest=digest_of(content), media_type=media_type, content=content)


def parse_configuration(content: bytes) -> dict[str, Any]:
    """Returns the configuration of an image.

    Raises:
        OddDocumentError: it has a platform, labels or layers of another type than text.
    """
    configuration = parse_object(content)
    _require_platform(configuration)
    config = configuration.get("config") or {}
    if not isinstance(config, dict):
        _odd("its configuration")
    _require_texts(config.get("Labels") or {}, "its labels")
    layers = configuration.get("rootfs") or {}
    if not isinstance(layers, dict) or not isinstance(layers.get("diff_ids") or [], list):
        _odd("its layers")
    for diff_id in diff_ids_of(configuration):
        _text(diff_id, "a layer")
    return configuration


def labels_of(configuration: Mapping[str, Any]) -> dict[str, str]:
    """Returns the labels in the configuration of an image."""
    return dict((configuration.get("config") or {}).get("Labels") or {})


def diff_ids_of(configuration: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the digests of the uncompressed layers in the configuration of an image, lowest first."""
    return tuple((configuration.get("rootfs") or {}).get("diff_ids") or ())


def _require_descriptor(value: object, what: str) -> None:
    if not isinstance(value, dict):
        _odd(what)
    _text(value.get("mediaType"), f"the type of {what}")
    if not _DIGEST.fullmatch(_text(value.get("digest"), f"the digest of {what}")):
        _odd(f"the digest of {what}")
    size = value.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < _LARGEST_SIZE:
        _odd(f"the size of {what}")


def _require_platform(value: object) -> None:
    if not isinstance(value, dict):
        _odd("a platform")
    for name in ("os", "architecture", "variant"):
        _text(value.get(name, ""), "a platform")


def _require_texts(value: object, what: str) -> None:
    if not isinstance(value, dict):
        _odd(what)
    for text in value.values():
        _text(text, what)


def _list(document: Mapping[str, Any], name: str) -> list[Any]:
    value = document.get(name)
    return value if isinstance(value, list) else _odd(f"the list of its {name}")


def _text(value: object, what: str) -> str:
    return value if isinstance(value, str) else _odd(what)


def _odd(what: str) -> NoReturn:
    raise OddDocumentError(f"{what} is missing, or is no such thing")
