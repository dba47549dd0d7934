"""The report of a smoke test, and its files: JSON, JUnit XML, and the log of every server."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from base_images.adapters import files
from base_images.untrusted import printable


class Status(StrEnum):
    """How a check ended."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    SKIP = "skip"


class Check(StrEnum):
    """The names of the checks, in tables, JSON and JUnit XML."""

    STARTS = "starts"
    HEALTH = "health"
    MODELS = "models"
    COMPLETION = "completion"
    OPENAI_COMPLETION = "openai completion"
    LONG_PROMPT = "long prompt"
    CHAT = "chat"
    CHAT_STREAMED = "chat streamed"
    EMBEDDINGS = "embeddings"
    AT_ONCE = "eight at once"
    WEB_PAGE = "web page"
    MALFORMED = "malformed request"
    PRECISION = "precision"
    CLIENT_MODELS = "client: models"
    CLIENT_CHAT = "client: chat"
    CLIENT_COMPLETION = "client: completion"
    CLIENT_EMBEDDINGS = "client: embeddings"
    BACKEND = "backend"
    HEALTHCHECK = "healthcheck"
    SIGTERM = "sigterm"
    LIST_DEVICES = "list-devices"
    OFFLOADED = "offloaded"
    BUFFERS = "buffers"
    CPU_STARTS = "cpu/ starts"
    AGREEMENT = "agreement"
    FLASH_ATTENTION = "flash attention"
    CPU_FLASH_ATTENTION = "flash attention of cpu/"
    SPEED = "speed"
    KNOWN_ANSWER = "known answer"
    ANSWERS = "answers"
    FAILURES = "failures"
    MEMORY = "memory"
    RESTARTS = "restarts"


class Device(StrEnum):
    """Where the servers computed; `UNKNOWN` for a server that was already running."""

    NONE = "no device"
    UNKNOWN = "unknown device"
    SOFTWARE = "software device"
    HOST = "device"


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The result of one check of one server.

    Attributes:
        name: a `Check`, in the reports of a smoke test.
        seen: the observation, on one line; for a failed check, what is wrong.
        seconds: wall-clock time of the check.
        detail: further information on a failure, such as an answer's body or the end of a log; may be empty.
    """

    name: str
    status: Status
    seen: str
    seconds: float
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class ServerReport:
    """The results of one server.

    Attributes:
        arguments: its command line; `IMAGE` stands for the image's own entrypoint.
        log: all of its output.
        seconds: wall-clock time, including creation and removal of its container.
    """

    name: str
    arguments: str
    checks: tuple[CheckResult, ...]
    log: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table on the terminal."""

    server: str
    check: str
    status: Status
    seen: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One quantity, measured on the device and on the CPU.

    Attributes:
        unit: of both values, such as `tokens per second`.
        device: None if it was not measured on the device.
        cpu: None if it was not measured on the CPU.
    """

    name: str
    unit: str
    device: float | None
    cpu: float | None

    @property
    def ratio(self) -> float | None:
        """The device's value divided by the CPU's; None if either is missing or zero."""
        device, cpu = finite(self.device), finite(self.cpu)
        return device / cpu if device and cpu else None

    @property
    def longest(self) -> float:
        """The larger value: the one that a bar of full length shows."""
        return max(finite(self.device), finite(self.cpu))


@dataclass(frozen=True, kw_only=True)
class SmokeReport:
    """The report of one image, one program or one running server.

    Attributes:
        image: the image's id; without an image the program's path or the server's URL.
        device: the device that the servers were given and told to use.
        started: RFC 3339, in UTC.
        seconds: wall-clock time in all, including containers and the computation of the models.
        speeds: measurements in display order, which do not affect `ok`.
        given_by: how the servers were given the device, such as its nodes; empty without one.
    """

    image: str
    variant: str
    device: Device
    started: str
    seconds: float
    servers: tuple[ServerReport, ...]
    speeds: tuple[Speed, ...] = ()
    given_by: str = ""

    @property
    def name(self) -> str:
        """Such as `smoke vulkan`, or `smoke vulkan on device`."""
        return f"smoke {self.variant}" + ("" if self.device is Device.NONE else f" on {self.device}")

    @property
    def picture(self) -> str:
        """What was measured over time, as SVG; empty without such measurements."""
        return ""

    @property
    def ok(self) -> bool:
        """Whether at least one check passed and none failed."""
        statuses = {row.status for row in self.rows}
        return Status.PASS in statuses and Status.FAIL not in statuses

    @property
    def rows(self) -> list[Row]:
        """One row per check, in the order they ran."""
        return [
            Row(server=server.name, check=check.name, status=check.status, seen=check.seen, seconds=check.seconds)
            for server in self.servers
            for check in server.checks
        ]

    def as_dict(self) -> dict[str, Any]:
        """Returns the report for JSON: the dataclasses' fields, `ok` and `ratio`, without the logs."""
        content = {"ok": self.ok, **asdict(self)}
        content["speeds"] = [{**asdict(speed), "ratio": speed.ratio} for speed in self.speeds]
        for server in content["servers"]:
            del server["log"]
        return content


def finite(value: float | None) -> float:
    """Returns a measured value as the length of a bar; 0 if it is missing, not finite, or not positive."""
    return value if value is not None and math.isfinite(value) and value > 0 else 0


def as_junit(report: SmokeReport) -> str:
    """Returns the report as JUnit XML: one suite per server, one case per check."""
    root = ET.Element("testsuites", name=report.name, time=f"{report.seconds:.3f}")
    for server in report.servers:
        count = {status: sum(check.status is status for check in server.checks) for status in Status}
        suite = ET.SubElement(
            root,
            "testsuite",
            name=server.name,
            timestamp=report.started,
            time=f"{server.seconds:.3f}",
            tests=str(len(server.checks)),
            failures=str(count[Status.FAIL]),
            skipped=str(count[Status.SKIP]),
            errors="0",
        )
        for check in server.checks:
            _add_case(suite, f"smoke.{report.variant}.{server.name}", check)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def write(report: SmokeReport, directory: Path) -> list[Path]:
    """Writes `smoke-<variant>.json`, `.xml`, a picture if there is one, and a `-server-<n>.log` per server.

    Returns their paths.

    On a device the names begin with `smoke-<variant>-on-device` or `smoke-<variant>-on-software-device`.

    Raises:
        UsageError: a file cannot be written.
    """
    stem = report.name.replace(" ", "-")
    contents = {
        f"{stem}.json": json.dumps(report.as_dict(), indent=2) + "\n",
        f"{stem}.xml": as_junit(report),
        **({f"{stem}.svg": report.picture} if report.picture else {}),
        **{f"{stem}-server-{number}.log": server.log for number, server in enumerate(report.servers, start=1)},
    }
    for name, content in contents.items():
        files.write(directory / name, content)
    return [directory / name for name in contents]


def _add_case(suite: ET.Element, class_name: str, check: CheckResult) -> None:
    case = ET.SubElement(suite, "testcase", classname=class_name, name=check.name, time=f"{check.seconds:.3f}")
    match check.status:
        case Status.FAIL:
            ET.SubElement(case, "failure", message=printable(check.seen)).text = printable(check.detail or check.seen)
        case Status.SKIP:
            ET.SubElement(case, "skipped", message=printable(check.seen))
        case Status.PASS:
            ET.SubElement(case, "system-out").text = printable(check.seen)
