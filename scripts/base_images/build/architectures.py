"""Device architectures (`--arch`) and toolkit versions of a build. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from base_images.errors import UsageError
from base_images.variants import Architectures, Variant


def architecture_argument(variant: Variant, asked: Sequence[str]) -> dict[str, str]:
    """Returns the recipe's ARG for the device architectures of `--arch`; empty without any.

    An item of `asked` may hold several, separated by commas or semicolons.

    Raises:
        UsageError: the variant has no device architectures, or a name is not one of them.
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
                f"{name!r} is not a device architecture of {variant.title}: write it like {architectures.example}."
            )
    if len(names) > 1 and not architectures.several:
        raise UsageError(f"An image of {variant.name} is for one device architecture: give one --arch.")
    if architectures.known:
        require_known(variant.name, architectures, names, architectures.known)
    return {architectures.argument: ";".join(dict.fromkeys(names))}


def toolkit_argument(variant: Variant, version: str) -> dict[str, str]:
    """Returns the recipe's ARG for the toolkit's version of `--toolkit`; empty without one.

    Raises:
        UsageError: the variant's toolkit has no version to choose, or this is not a version.
    """
    if not version:
        return {}
    if not variant.version_argument:
        raise UsageError(f"The variant {variant.name} has no version of a toolkit to choose: leave --toolkit out.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", version):
        raise UsageError(f"{version!r} is not a version of a toolkit: write it like 13.0.3.")
    return {variant.version_argument: version}


def listed(architectures: Architectures, listing: str) -> tuple[str, ...]:
    """Returns the architectures in the output of a toolkit's listing command."""
    return tuple(dict.fromkeys(re.findall(architectures.listed, listing)))


def require_known(variant: str, architectures: Architectures, names: Sequence[str], known: Sequence[str]) -> None:
    """Checks that the toolkit of a variant supports every architecture.

    Raises:
        UsageError: an architecture is not among `known`.
    """
    for name in names:
        match = re.fullmatch(architectures.form, name)
        if match is None or match[1] not in known:
            raise UsageError(
                f"The toolkit of {variant} does not know the device architecture {name}: choose from "
                f"{', '.join(known)}."
            )


def reported(variant: Variant, arguments: Mapping[str, str]) -> dict[str, str]:
    """Returns version.json's `toolkit`: the variant's names for it, with the values of the recipe's ARGs.

    Raises:
        UsageError: the recipe has no value for an ARG.
    """
    for name, argument in variant.toolkit.items():
        if not arguments.get(argument):
            raise UsageError(
                f"{variant.dockerfile} has no value for ARG {argument} before its first FROM: add it, "
                f"the image reports it as {name}."
            )
    return {name: arguments[argument] for name, argument in variant.toolkit.items()}
