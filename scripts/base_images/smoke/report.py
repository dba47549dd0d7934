"""What a smoke test saw, and how it is kept: JSON, JUnit XML, and the log of every server."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from base_images.errors import UsageError


class Status(StrEnum):
    """How a check ended."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    SKIP = "skip"


class Check(StrEnum):
    """What a check is called in tables, JSON and JUnit XML."""

    STARTS = "starts"
    HEALTH = "health"
    MODELS = "models"
    COMPLETION = "completion"
    OPENAI_COMPLETION = "openai completion"
    CHAT = "chat"
    CHAT_STREAMED = "chat streamed"
    EMBEDDINGS = "embeddings"
    AT_ONCE = "eight at once"
    WEB_PAGE = "web page"
    MALFORMED = "malformed request"
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


class Device(StrEnum):
    """What computed; `UNKNOWN` where a running server was asked that somebody else started."""

    NONE = "no device"
    UNKNOWN = "unknown device"
    SOFTWARE = "software device"
    HOST = "device"


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """How one check of one server ended.

    Attributes:
        seen: what was seen, on one line; for a check that failed, what is wrong.
        seconds: wall-clock time of the check.
        detail: more of it for who has to mend it, such as an answer's body or a log's tail; may be empty.
    """

    name: str
    status: Status
    seen: str
    seconds: float
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class ServerReport:
    """What was seen of one server.

    Attributes:
        arguments: its command line; `IMAGE` stands for the image's own entrypoint.
        log: everything it wrote.
        seconds: wall-clock time, its container's making and end included.
    """

    name: str
    arguments: str
    checks: tuple[CheckResult, ...]
    log: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table that a person sees."""

    server: str
    check: str
    status: Status
    seen: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One thing that was measured on the device and on the CPU.

    Attributes:
        unit: of both values, such as `tokens per second`.
        device: None when it was not measured there.
        cpu: the same.
    """

    name: str
    unit: str
    device: float | None
    cpu: float | None

    @property
    def ratio(self) -> float | None:
        """The device's value as a multiple of the CPU's; None when one of them is missing or zero."""
        device, cpu = finite(self.device), finite(self.cpu)
        return device / cpu if device and cpu else None

    @property
    def longest(self) -> float:
        """What a bar as long as its place stands for."""
        return max(finite(self.device), finite(self.cpu))


@dataclass(frozen=True, kw_only=True)
class SmokeReport:
    """What was seen of one image, of one program or of one running server.

    Attributes:
        image: the image's id; the program's path or the server's URL where there was no image.
        device: what the servers were given, and told to use.
        started: RFC 3339, in UTC.
        seconds: wall-clock time of the whole, containers and the making of the models included.
        speeds: what was measured, in the order to show; numbers, not verdicts.
    """

    image: str
    variant: str
    device: Device
    started: str
    seconds: float
    servers: tuple[ServerReport, ...]
    speeds: tuple[Speed, ...] = ()

    @property
    def name(self) -> str:
        """Such as `smoke vulkan`, or `smoke vulkan on device`."""
        return f"smoke {self.variant}" + ("" if self.device is Device.NONE else f" on {self.device}")

    @property
    def ok(self) -> bool:
        """Whether something passed and nothing failed."""
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
        """Returns the report for JSON: the dataclasses' names, `ok` and `ratio`; logs are files of their own."""
        content = {"ok": self.ok, **asdict(self)}
        content["speeds"] = [{**asdict(one), "ratio": one.ratio} for one in self.speeds]
        for server in content["servers"]:
            del server["log"]
        return content


def finite(value: float | None) -> float:
    """Returns a measured value as a length to draw; 0 for one that is missing or no number."""
    return value if value is not None and math.isfinite(value) and value > 0 else 0


def as_junit(report: SmokeReport) -> str:
    """Returns the report as JUnit XML: a suite for each server, a case for each check."""
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
    """Writes `smoke-<variant>.json`, `.xml` and a `-server-<n>.log` per server; returns their paths.

    On a device the names begin with `smoke-<variant>-on-device` or `smoke-<variant>-on-software-device`.

    Raises:
        UsageError: the directory cannot be written.
    """
    stem = report.name.replace(" ", "-")
    contents = {
        f"{stem}.json": json.dumps(report.as_dict(), indent=2) + "\n",
        f"{stem}.xml": as_junit(report),
        **{f"{stem}-server-{number}.log": server.log for number, server in enumerate(report.servers, start=1)},
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_text(directory / name, content)
    except OSError as error:
        raise UsageError(
            f"The record cannot be written to {directory} ({error.strerror}): choose another directory."
        ) from error
    return [directory / name for name in contents]


def write_json(value: Any, path: Path) -> None:
    """Writes a value as JSON to a file, see `write_file`."""
    write_file(path, json.dumps(value, indent=2) + "\n")


def write_file(path: Path, content: str) -> None:
    """Writes a file whole or not at all, and makes its directory.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, content)
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror}): choose another file.") from error


def write_text(path: Path, content: str) -> None:
    """Writes a file whole or not at all: two tests that end at once do not mix theirs."""
    if path.exists() and not path.is_file():
        path.write_text(content, encoding="utf-8")  # such as /dev/stdout, which is not to be replaced
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(content, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _add_case(suite: ET.Element, class_name: str, check: CheckResult) -> None:
    case = ET.SubElement(suite, "testcase", classname=class_name, name=check.name, time=f"{check.seconds:.3f}")
    match check.status:
        case Status.FAIL:
            ET.SubElement(case, "failure", message=_xml_text(check.seen)).text = _xml_text(check.detail or check.seen)
        case Status.SKIP:
            ET.SubElement(case, "skipped", message=_xml_text(check.seen))
        case Status.PASS:
            ET.SubElement(case, "system-out").text = _xml_text(check.seen)


def _xml_text(text: str) -> str:
    """Replaces what XML 1.0 cannot hold at all, such as the escape characters of a coloured log."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\N{REPLACEMENT CHARACTER}", text)
