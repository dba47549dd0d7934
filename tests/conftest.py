"""Fixtures that all tests share: the real engine and the real cpu image."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from base_images import versions
from base_images.adapters import engine as engines
from base_images.adapters import programs
from base_images.errors import BaseImagesError
from tests.support.registries import Authority, make_authority

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A background job of a shell ignores Ctrl-C; the commands that these tests interrupt would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

for name in filter(programs.is_foreign, tuple(os.environ)):
    del os.environ[name]  # tests commit: in a hook's GIT_DIR, they would do it in the repository of the hook


@pytest.fixture(scope="session", autouse=True)
def _git(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Isolates git from this machine's settings, and from the repository of a hook that runs the tests."""
    configuration = tmp_path_factory.mktemp("git") / "config"
    configuration.write_text(
        "[user]\nname = A\nemail = a@example.org\n[init]\ndefaultBranch = main\n[safe]\ndirectory = *\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_GLOBAL", str(configuration))
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
            patch.delenv(name, raising=False)
        yield


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


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))
