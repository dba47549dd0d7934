"""Checks an image against the 21 rows of the contract (docs/contract.md). Never prints.

Each row is a pure function of `ImageFacts` that returns what it observed and a sentence for each defect. A row that
needs more than the image, such as a device, names the test that covers it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from base_images.adapters.engine import Engine
from base_images.contract import rows_behaviour, rows_contents, rows_layout, rows_metadata
from base_images.contract.facts import ImageFacts, gather
from base_images.contract.sizes import Before, Sizes
from base_images.contract.verdict import Status, Verdict
from base_images.recipes import consumer
from base_images.variants import Variant


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """One row of the contract.

    Attributes:
        number: 1 to 21.
        seen: the observed state in a few words.
        findings: a sentence for each defect; with status `exception`, the reason of the exception.
    """

    number: int
    title: str
    status: Status
    seen: str
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ContractReport:
    """All 21 rows of one image, in order.

    Attributes:
        variant: the variant's name; None when unknown.
        sizes: what the image stores above its base, which a later image is compared with.
    """

    reference: str
    image_id: str
    variant: str | None
    rows: tuple[RowResult, ...]
    sizes: Sizes | None = None

    @property
    def ok(self) -> bool:
        """Whether no row failed."""
        return all(row.status is not Status.FAIL for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as values that `json.dumps` accepts."""
        return {**asdict(self), "ok": self.ok}


def check(
    engine: Engine,
    reference: str,
    variant: Variant | None = None,
    *,
    before: Callable[[ImageFacts], Before | None] = lambda _: None,
) -> ContractReport:
    """Checks the image that `reference` names now against the contract.

    `variant` is the expected one; a label that names another is a finding. `before` returns the image that its size is
    compared with, if any.

    Raises:
        ImageNotFoundError: the engine has no such image.
        EngineError: the engine failed.
    """
    facts = gather(engine, reference, variant)
    facts = replace(facts, before=before(facts))
    return ContractReport(
        reference=reference,
        image_id=facts.image.id,
        variant=facts.variant.name if facts.variant else None,
        rows=judge(facts),
        sizes=facts.sizes,
    )


def judge(facts: ImageFacts) -> tuple[RowResult, ...]:
    """Returns the result of every row, in order."""
    rows = []
    for number, (title, row) in enumerate(_ROWS, start=1):
        verdict = row(facts)
        status = verdict.status or (Status.FAIL if verdict.findings else Status.PASS)
        findings = tuple(map(_text, verdict.findings))
        rows.append(RowResult(number=number, title=title, status=status, seen=_text(verdict.seen), findings=findings))
    return tuple(rows)


def _text(text: str) -> str:
    r"""Returns a text with the bytes of a file's name that are not UTF-8 as `\xNN`: no terminal or file takes them."""
    return text.encode(errors="backslashreplace").decode().replace("\\udc", "\\x")


_ROWS: tuple[tuple[str, Callable[[ImageFacts], Verdict]], ...] = (
    ("llama-server where BodhiApp looks for it", rows_layout.layout),
    ("libraries beside it, RUNPATH $ORIGIN, nothing unresolved", rows_layout.libraries),
    ("starts from a copy in another directory", rows_behaviour.relocation),
    ("user llama by number; payload owned by root", rows_layout.ownership),
    ("WORKDIR /app, version.json readable", rows_layout.working_directory),
    ("version.json is complete", rows_metadata.version_json),
    ("labels are complete and true", rows_metadata.labels),
    ("shell, coreutils, curl, CA certificates, health check", rows_behaviour.tools),
    ("llama-server and nothing else", rows_contents.contents),
    ("no new setuid, nothing world-writable", rows_contents.privileges),
    ("starts hardened as an arbitrary user", rows_behaviour.hardened),
    ("nothing stored twice", rows_contents.stored_once),
    ("pinned build, portable code", rows_behaviour.portable),
    ("CPU backend loaded, accelerator backend present", rows_behaviour.accelerator),
    ("SIGTERM ends it with 0", rows_behaviour.stops),
    ("glibc is new enough", rows_metadata.glibc),
    ("within its size budget", rows_contents.size),
    (f"takes the arguments that {consumer.NAME} passes", rows_behaviour.arguments),
    ("volumes that any user can write", rows_behaviour.volumes),
    ("SIGTERM ends it at once, loading included", rows_behaviour.stops_at_once),
    ("license texts, and a package note for the SBOM", rows_contents.licenses),
)
