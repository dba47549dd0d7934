"""The documents that people read: the README, those in docs/ and those that GitHub looks for."""

from __future__ import annotations

from base_images import settings

PATHS = [
    settings.ROOT / "README.md",
    *sorted((settings.ROOT / "docs").glob("*.md")),
    *(settings.ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
]
TEXTS = {path.relative_to(settings.ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PATHS}
"""Path below the checkout to text."""

TEXT = "\n".join(TEXTS.values())
"""All of them. Blocks of the kind `sh` are run by tests; those of the kind `shell` are only parsed."""
