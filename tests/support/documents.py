"""The documents: the README, the map of scripts/, those in docs/ and those that GitHub looks for."""

from __future__ import annotations

from base_images import settings

PATHS = [
    *(settings.ROOT / name for name in ("README.md", "scripts/README.md")),
    *sorted((settings.ROOT / "docs").glob("*.md")),
    *(settings.ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
]
TEXTS = {path.relative_to(settings.ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PATHS}
"""Path relative to the checkout, and text."""

TEXT = "\n".join(TEXTS.values())
"""All texts. Tests run the code blocks marked `sh`; those marked `shell` are only parsed."""
