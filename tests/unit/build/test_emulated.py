from __future__ import annotations

from pathlib import Path

import pytest

from base_images.build import emulated
from base_images.build.emulated import require_emulator
from base_images.errors import SourceError
from base_images.variants import Platform


def test_a_machine_without_an_emulator_is_told_how_to_get_one(tmp_path: Path) -> None:
    (tmp_path / "qemu-x86_64").touch()
    with pytest.raises(SourceError, match=r"linux/arm64: `apt-get install qemu-user-static .*qemu-aarch64"):
        require_emulator(Platform.ARM64, tmp_path)
    require_emulator(Platform.AMD64, tmp_path)


def test_whatever_a_base_gets_beside_its_packages_makes_another_base(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {emulated.base_key("amd64", Platform.ARM64), emulated.base_key("arm64", Platform.AMD64)}
    for name in ("CROSS_PACKAGES", "_LINKS", "_VARIABLES"):
        with monkeypatch.context() as changed:
            changed.setattr(emulated, name, {})
            keys.add(emulated.base_key("amd64", Platform.ARM64))
    assert len(keys) == 5
