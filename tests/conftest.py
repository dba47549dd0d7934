"""Fixtures that every kind of test shares: the real engine and the real cpu image."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from base_images import versions
from base_images.adapters import engine as engines
from base_images.errors import BaseImagesError

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's job in the background ignores Ctrl-C, and so would every command that these tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def engine() -> Iterator[engines.Engine]:
    try:
        connected = engines.connect()
    except BaseImagesError as error:
        pytest.exit(str(error), error.exit_code)
    yield connected
    connected.close()


@pytest.fixture(scope="session")
def cpu_image(engine: engines.Engine) -> engines.Image:
    try:
        return engine.image(versions.local_reference("cpu"))
    except BaseImagesError as error:
        pytest.exit(str(error), error.exit_code)
