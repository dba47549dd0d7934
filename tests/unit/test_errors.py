"""User names and passwords in URLs."""

from __future__ import annotations

import pytest

from base_images.errors import BaseImagesError, scrub


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("https://user:secret@host/x", "https://host/x"),
        ("https://secret@host/x", "https://host/x"),
        ("HTTPS://user:secret@host", "HTTPS://host"),
        ("https://:secret@host/x", "https://host/x"),
        ("https://a@b:secret@host/x", "https://host/x"),
        ("tcp://user:secret@127.0.0.1:2375", "tcp://127.0.0.1:2375"),
        ("ssh://git:secret@host/x", "ssh://git@host/x"),
        ("ssh://git@host/x", "ssh://git@host/x"),
        ("git+https://secret@host/x", "git+https://host/x"),
        ("two: http://a:secret@b/ and http://secret@d/.", "two: http://b/ and http://d/."),
        ("git@github.com:a/b", "git@github.com:a/b"),
        ("https://host/@user/x@sha256:1", "https://host/@user/x@sha256:1"),
        ("https://host?a=b@c", "https://host?a=b@c"),
        ("127.0.0.1:5000/x@sha256:1", "127.0.0.1:5000/x@sha256:1"),
        ("https://github.com, a@example.org", "https://github.com, a@example.org"),
    ],
)
def test_a_url_loses_user_and_password(text: str, scrubbed: str) -> None:
    assert scrub(text) == scrubbed
    error = BaseImagesError(f"{text} fails.", detail=text)
    assert (str(error), error.detail) == (f"{scrubbed} fails.", scrubbed)
