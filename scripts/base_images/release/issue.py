"""The one issue about what is latest: the workflow `nightly` opens it, keeps its text current, and closes it.

Its results are files: `latest-<variant>-<architecture>.json` of `invoke verify-latest`, and `scan-….sarif` of Grype. A
job without a file has failed. GitHub is asked by the program `gh`.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base_images.adapters import programs
from base_images.adapters.manifest import OddDocumentError, parse_object
from base_images.contract.verdict import some
from base_images.errors import BaseImagesError, UsageError
from base_images.recipes import markdown

JOBS_VARIABLE = "LATEST"
"""Environment variable with the jobs of the night, as `invoke plan --format latest` prints them."""

TITLE = "What is latest fails its nightly checks"
LABEL = "nightly"

SECONDS = 60.0
"""Time-out of one request to GitHub."""

SHOWN, ROWS = 300, 60
"""Characters of a failure, and failures; GitHub takes 65,536 characters in the text of an issue."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A check of one image that failed, or a job without a result."""

    variant: str
    platform: str
    check: str
    seen: str


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request to GitHub's REST API, below the repository's own path."""

    method: str
    path: str
    fields: Mapping[str, Any]


OPEN = Request(method="GET", path=f"issues?state=open&labels={LABEL}&per_page=100", fields={})
"""https://docs.github.com/en/rest/issues/issues, "List repository issues"."""


def parse_jobs(text: str) -> list[dict[str, str]] | None:
    """Returns the jobs of the night; None for an empty text: what is latest could not be listed.

    Raises:
        UsageError: the text is something else.
    """
    with contextlib.suppress(ValueError, LookupError, TypeError):
        jobs: list[dict[str, str]] | None = json.loads(text) if text else None
        if all(isinstance(job[key], str) for job in jobs or () for key in ("variant", "platform")):
            return jobs
    raise UsageError(f"{JOBS_VARIABLE} has no jobs: set it to what `invoke plan --format latest` prints.")


def problems(jobs: Iterable[Mapping[str, str]] | None, directory: Path) -> Iterator[Problem]:
    """Yields what failed of the jobs, whose results lie in a directory."""
    if jobs is None:
        yield Problem(variant="all", platform="all", check="plan", seen="what is latest could not be listed.")
    for job in jobs or ():
        variant, platform = job["variant"], job["platform"]
        stem = f"{variant}-{platform.rpartition('/')[2]}"
        failed = [*_checks(directory / f"latest-{stem}.json"), *_scan(directory / f"scan-{stem}.sarif")]
        yield from (Problem(variant=variant, platform=platform, check=check, seen=seen) for check, seen in failed)


def _checks(path: Path) -> Iterator[tuple[str, str]]:
    try:
        found = parse_object(path.read_bytes())
        failed = [(str(check["name"]), str(check["seen"])) for check in found["checks"] if check["status"] == "fail"]
        yield from failed or ([] if found["ok"] is True else [("verify", "it has not passed.")])
    except (OSError, OddDocumentError, LookupError, TypeError):
        yield "verify", "no result: the job did not get that far."


def _scan(path: Path) -> Iterator[tuple[str, str]]:
    """Yields what Grype found that is high or critical: the level `error` (v0.116, presenter/sarif, `levelValue`)."""
    try:
        results = [result for run in parse_object(path.read_bytes())["runs"] for result in run["results"] or ()]
        found = sorted({str(result["ruleId"]) for result in results if result["level"] == "error"})
    except (OSError, OddDocumentError, LookupError, TypeError):
        yield "scan", "no result: the job did not get that far."
        return
    if found:
        yield "scan", f"{len(found)} high or critical with a fix: {some(found)}"


def text(found: Sequence[Problem], *, run: str) -> str:
    """Returns the issue's text; empty where nothing failed. `run` is the URL of the run, empty elsewhere."""
    if not found:
        return ""
    rows = [[one.variant, one.platform, one.check, one.seen[:SHOWN]] for one in found]
    head = ["variant", "platform", "check", "what is wrong"]
    names = sorted({one.variant for one in found})
    cells = [[markdown.text(cell) for cell in row] for row in rows[:ROWS]]
    more = f"\n\n{len(rows) - ROWS} more are in the run." if len(rows) > ROWS else ""
    where = f" ([the run]({run}))" if run else ""
    again = " ".join(f"`invoke verify-latest --variant {name}`" for name in names if name != "all")
    return (
        f"Somebody who pulls these images today gets something that fails{where}.\n\n"
        f"{markdown.table([head, *cells])}{more}\n\n"
        f"On a machine of the platform: {again or '`invoke plan --format latest`'}. The document `docs/releasing.md` "
        "says what to do. This text is replaced every night, and the issue is closed once everything passes.\n"
    )


def requests(issues: Iterable[Mapping[str, Any]], body: str, *, run: str) -> list[Request]:
    """Returns what to ask of GitHub, given the open issues with the label, and the text; empty: nothing failed."""
    numbers = sorted(issue["number"] for issue in issues if issue.get("title") == TITLE and "pull_request" not in issue)
    if body and not numbers:
        label = Request(method="POST", path="labels", fields={"name": LABEL, "color": "b3231c"})
        return [label, Request(method="POST", path="issues", fields={"title": TITLE, "body": body, "labels": [LABEL]})]
    kept = numbers[:1] if body else []
    why = f"The same as #{numbers[0]}." if body else f"Everything that is latest passes.{f' {run}' if run else ''}"
    found = [Request(method="PATCH", path=f"issues/{number}", fields={"body": body}) for number in kept]
    for number in numbers[len(kept) :]:
        found.append(Request(method="POST", path=f"issues/{number}/comments", fields={"body": why}))
        found.append(Request(method="PATCH", path=f"issues/{number}", fields={"state": "closed"}))
    return found


def update(body: str, *, run: str) -> Iterator[Request]:
    """Makes the issue say what the text says, and yields each request once it is answered; see `requests` and `ask`."""
    for request in requests(ask(OPEN), body, run=run):
        with contextlib.suppress(BaseImagesError) if request.path == "labels" else contextlib.nullcontext():
            ask(request)  # a label that exists is refused
        yield request


def ask(request: Request) -> Any:
    """Sends a request by `gh`, for the repository of GH_REPO or of the clone, and returns the answer.

    Raises:
        UsageError: `gh` is not installed.
        BaseImagesError: GitHub refused, or did not answer.
    """
    program = programs.find_program("gh")
    if program is None:
        raise UsageError("gh is not installed, which asks GitHub: install it, or use --dry-run.")
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as body:
        json.dump(request.fields, body)
        body.flush()
        sent = ("--input", body.name) if request.fields else ()
        where = f"repos/{{owner}}/{{repo}}/{request.path}"
        done = programs.run([program, "api", "--method", request.method, where, *sent], timeout=SECONDS)
    why = done.last_words if done.exit_code else "its answer has another form"
    with contextlib.suppress(ValueError):
        if not done.exit_code and isinstance(answer := json.loads(done.stdout), list) is (request.method == "GET"):
            return answer
    raise BaseImagesError(f"GitHub did not {request.method} {request.path} ({why}): look at GH_TOKEN and GH_REPO.")
