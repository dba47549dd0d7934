from __future__ import annotations

from pathlib import Path

import pytest

from base_images.build.emulated import require_emulator
from base_images.errors import SourceError
from base_images.variants import Platform


def test_a_machine_without_an_emulator_is_told_how_to_get_one(tmp_path: Path) -> None:
    (tmp_path / "qemu-x86_64").touch()
    with pytest.raises(SourceError, match=r"linux/arm64: `apt-get install qemu-user-static .*qemu-aarch64"):
        require_emulator(Platform.ARM64, tmp_path)
    require_emulator(Platform.AMD64, tmp_path)
