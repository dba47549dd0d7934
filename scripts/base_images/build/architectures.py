"""What a backend is compiled with and for: `--arch`, and the recipe's ARGs that an image reports. Touches nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from base_images.errors import UsageError
from base_images.variants import Architectures, Variant


def architecture_argument(variant: Variant, asked: Sequence[str]) -> dict[str, str]:
    """Returns the recipe's ARG for the device architectures of `--arch`; empty when none was asked for.

    Args:
        variant: what is built.
        asked: architectures, each also several of them joined by a comma or a semicolon.

    Raises:
        UsageError: the variant is not compiled for architectures, or one does not look like its architectures.
    """
    names = [name for text in asked for name in re.split(r"[;,\s]+", text) if name]
    if not names:
        return {}
    architectures = variant.architectures
    if architectures is None:
        raise UsageError(f"The variant {variant.name} is not compiled for device architectures: leave --arch out.")
    for name in names:
        if not re.fullmatch(architectures.form, name):
            raise UsageError(
                f"{name!r} is no device architecture of {variant.title}: they are like {architectures.example}."
            )
    if len(names) > 1 and not architectures.several:
        raise UsageError(f"An image of {variant.name} is for one device architecture: give one --arch.")
    if architectures.known:
        require_known(variant.name, architectures, names, architectures.known)
    return {architectures.argument: ";".join(dict.fromkeys(names))}


def listed(architectures: Architectures, listing: str) -> tuple[str, ...]:
    """Returns the names of architectures in what a toolkit's listing command printed."""
    return tuple(dict.fromkeys(re.findall(architectures.listed, listing)))


def require_known(variant: str, architectures: Architectures, names: Sequence[str], known: Sequence[str]) -> None:
    """Returns when the toolkit of a variant knows every architecture.

    Raises:
        UsageError: it does not know one.
    """
    for name in names:
        match = re.fullmatch(architectures.form, name)
        if match is None or match[1] not in known:
            raise UsageError(
                f"The toolkit of {variant} does not know the device architecture {name}: choose from "
                f"{', '.join(known)}."
            )


def reported(variant: Variant, arguments: Mapping[str, str]) -> dict[str, str]:
    """Returns version.json's `toolkit`: the names of the variant's table with the values of the recipe's ARGs.

    Raises:
        UsageError: the recipe gives an ARG no value, so that the image could not report it.
    """
    for name, argument in variant.toolkit.items():
        if not arguments.get(argument):
            raise UsageError(
                f"{variant.dockerfile} has no value for ARG {argument} before its first FROM: add it, "
                f"the image reports it as {name}."
            )
    return {name: arguments[argument] for name, argument in variant.toolkit.items()}
