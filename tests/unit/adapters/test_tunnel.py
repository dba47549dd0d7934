"""The frames of a command's output; `tests/image/adapters/test_elsewhere.py` has the tunnel itself."""

from __future__ import annotations

import struct

import pytest

from base_images.adapters.tunnel import frames


def frame(stream: int, content: bytes) -> bytes:
    return struct.pack(">BxxxL", stream, len(content)) + content


@pytest.mark.parametrize("size", [1, 3, 8, 9, 1000])
def test_frames_are_whole_however_they_arrive(size: int) -> None:
    sent = [(1, b"hello"), (2, b""), (2, b"\0" * 300), (1, bytes(range(256)))]
    whole = b"".join(frame(*each) for each in sent)
    received, found = bytearray(), []
    for start in range(0, len(whole), size):
        received += whole[start : start + size]
        found += list(frames(received))
    assert found == sent
    assert not received


def test_the_rest_of_a_frame_is_kept() -> None:
    received = bytearray(frame(1, b"hello")[:-1])
    assert list(frames(received)) == []
    received += b"o!"
    assert list(frames(received)) == [(1, b"hello")]
    assert received == b"!"
