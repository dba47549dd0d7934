"""Signatures and attestations of an image, which the workflow makes for a release on GitHub's registry."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from base_images.adapters import programs

WORKFLOW = ".github/workflows/variant.yml"
"""The workflow that signs the images."""

ISSUER = "https://token.actions.githubusercontent.com"
"""Who issues the identities of GitHub's workflows."""

SIGNED_REGISTRY = "ghcr.io"
"""The workflow publishes there; what other registries have was pushed by hand, and nobody signed it."""

SECONDS = 300.0
"""Time-out of one verification, which asks the registry and Sigstore."""


@dataclass(frozen=True, kw_only=True)
class Signer:
    """Who must have signed the images of a release: this project's workflow, for the release's tag.

    Attributes:
        url: the project's, such as `https://github.com/BodhiSearch/llama.cpp`.
        git_tag: of the release.
        commit: the full hash of its commit.
    """

    url: str
    git_tag: str
    commit: str

    @property
    def identity(self) -> str:
        """A regular expression for the workflow as Sigstore's certificates name it.

        The name ends in the ref or, with `uses: $/…`, perhaps in the commit: both belong to this release alone.
        """
        workflow = f"{self.url}/{WORKFLOW}".replace(".", r"\.")
        return f"^{workflow}@(refs/tags/{self.git_tag}|{self.commit})$"


def exist(repository: str) -> bool:
    """Returns whether a registry's repository, such as `ghcr.io/owner/name`, has images that the workflow signed."""
    return repository.partition("/")[0] == SIGNED_REGISTRY


def commands(image: str, signer: Signer) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """Returns the commands that verify an image, given by its digest; each command is lines of arguments."""
    return (
        (
            ("cosign", "verify"),
            ("--certificate-oidc-issuer", ISSUER),
            ("--certificate-identity-regexp", signer.identity),
            (image,),
        ),
        (
            ("gh", "attestation", "verify"),
            ("--repo", urlsplit(signer.url).path.strip("/")),
            ("--cert-identity-regex", signer.identity),
            (f"oci://{image}",),
        ),
    )


def as_shell(command: tuple[tuple[str, ...], ...]) -> str:
    """Returns a command of `commands` for a shell."""
    return " \\\n  ".join(shlex.join(line) for line in command)


def problems(image: str, signer: Signer, environment: Mapping[str, str] | None = None) -> list[str]:
    """Verifies an image, which is given by its digest, and returns a sentence for each command that does not.

    `environment` is the commands', None for this process's own.
    """
    found = []
    for command in commands(image, signer):
        arguments = [argument for line in command for argument in line]
        path = programs.find_program(arguments[0])
        if path is None:
            found.append(
                f"{arguments[0]} is not installed, which verifies who made {image}: install it, or promote in CI."
            )
            continue
        done = programs.run([path, *arguments[1:]], environment=environment, timeout=SECONDS)
        if done.exit_code:
            why = f"no answer within {SECONDS:g} s" if done.timed_out else done.last_words
            found.append(
                f"{arguments[0]} does not verify that {WORKFLOW} made {image} for {signer.git_tag} ({why}); it signs "
                "only what passed its checks and its scan for vulnerabilities."
            )
    return found
