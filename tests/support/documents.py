"""The documents: the README, the map of scripts/, those in docs/ and those that GitHub looks for."""

from __future__ import annotations

from base_images import settings
from base_images.recipes import consumer, markdown
from base_images.variants import VARIANTS, Variant, megabytes
from tests.support import kept_reports

PATHS = [
    *(settings.ROOT / name for name in ("README.md", "scripts/README.md")),
    *sorted((settings.ROOT / "docs").rglob("*.md")),
    *(settings.ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
]
TEXTS = {path.relative_to(settings.ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PATHS}
"""Path relative to the checkout, and text."""

TEXT = "\n".join(TEXTS.values())
"""All texts. Tests run the code blocks marked `sh`; those marked `shell` are only parsed."""


def images_table() -> str:
    """Returns the README's table of images."""
    rows = [("variant", "platforms", "registry tags", "adds to its base", "proven")]
    for variant in VARIANTS:
        platforms = ", ".join(platform.docker for platform in variant.platforms)
        tags = f"`{settings.load().registry}:latest-{variant.name}`, `{variant.name}-<version>`"
        size = megabytes(variant.size_measured) if variant.size_measured else "not measured yet"
        if variant.size_architectures:
            size += f" for {variant.size_architectures}"
        rows.append((variant.title, platforms, tags, size, proven(variant)))
    return markdown.table(rows)


def proven(variant: Variant) -> str:
    """Returns the README's column: what was proven without a device, and, from the kept reports, on which."""
    of_variant = [kept for kept in kept_reports.newest() if kept.variant == variant.name]
    on_devices = [f"[{kept.device}]({kept.link}): {kept.verdict}" for kept in of_variant]
    if variant.device and not any(kept.is_hardware for kept in of_variant):
        on_devices.append("a device: not yet")
    return "; ".join((variant.proven or "not yet", *on_devices))


def arguments_table() -> str:
    """Returns the README's table of working arguments, and of the refused ones that they replace."""
    data = consumer.load()
    rows = [("variant", "arguments that work", f"{consumer.NAME} writes, and llama-server refuses")]
    for name in (variant.name for variant in VARIANTS):
        refused = ", ".join(f"`{refusal.argument}`" for refusal in data.refusals_of(name))
        rows.append((name, f"`{' '.join(data.working(name, name))}`", refused or "-"))
    return markdown.table(rows)
