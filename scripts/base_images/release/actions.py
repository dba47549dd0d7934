"""Actions: what a command that changes a registry did, or would do, and the file that records it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from base_images.errors import BaseImagesError, UsageError
from base_images.variants import Variant


class Outcome(StrEnum):
    """How an action ended."""

    DONE = "done"
    ALREADY = "already"
    WOULD = "would"
    WAITING = "waiting"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Action:
    """One change of a registry.

    Attributes:
        what: such as `push`, `merge`, `attach contract`, `promote`.
        target: the reference that it changes.
        digest: of the target now; empty when it does not exist.
        reason: why it was refused or failed, or what else a user should know.
    """

    variant: str
    what: str
    target: str
    outcome: Outcome
    digest: str = ""
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is left to fix."""
        return self.outcome in {Outcome.DONE, Outcome.ALREADY, Outcome.WOULD}


def run_url(environment: Mapping[str, str]) -> str:
    """Returns the URL of the run on GitHub that has this environment; empty elsewhere."""
    parts = [environment.get(name, "") for name in ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_RUN_ID")]
    return "{}/{}/actions/runs/{}".format(*parts) if all(parts) else ""


def with_failure(variant: Variant, what: str, change: Callable[[Variant], Iterable[Action]]) -> Iterator[Action]:
    """Yields the actions of a change of one variant; an error of ours becomes the last of them."""
    try:
        yield from change(variant)
    except BaseImagesError as error:
        yield Action(variant=variant.name, what=what, target="", outcome=Outcome.FAILED, reason=str(error))


def write(command: str, actions: Iterable[Action], directory: Path) -> Path:
    """Appends a command's actions to `<command>.jsonl`, one JSON object a line, and returns the file's path.

    Raises:
        UsageError: the file cannot be written.
    """
    path = directory / f"{command}.jsonl"
    at = datetime.now(UTC).isoformat(timespec="seconds")
    lines = "".join(json.dumps({"at": at, **asdict(action)}) + "\n" for action in actions)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(lines)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror}), so what was done is only on the screen."
        ) from error
    return path
