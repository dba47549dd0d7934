"""Smoke reports for the tests of the HTML page."""

from __future__ import annotations

import dataclasses

from base_images.labels import Label
from base_images.smoke.report import CheckResult, Device, ServerReport, SmokeReport, Speed, Status

DIGEST = "sha256:8552ea04e516804d743574ed8f312ec2385476cae871f85a81760c10d192c9ce"

LABELS: dict[str, str] = {
    Label.VERSION: "2611230319-0b7ec17",
    Label.LLAMA_CPP_TAG: "b11312",
    Label.BASE_DIGEST: DIGEST,
    Label.DOCUMENTATION: "https://github.com/BodhiSearch/llama.cpp/blob/0b7ec176bc2304994857b44f18c606f038f05cfb/README.md",
}

SPEEDS = (
    Speed(name="prompt", unit="tokens per second", device=18234.4, cpu=312.77),
    Speed(name="generation", unit="tokens per second", device=412.1, cpu=33.54),
    Speed(name="device memory", unit="MiB", device=5321, cpu=None),
)

HOSTILE = (
    '\n</pre></style><script>alert(1)</script><img src=//x.example/x.png onerror=alert(1)>&lt;{{ 7 * 7 }} "quoted"'
    " ]]> \N{GREEK SMALL LETTER ALPHA}\N{GRINNING FACE}\N{RIGHT-TO-LEFT OVERRIDE}" + "w" * 600
)
"""Becomes markup or widens the page beyond a phone's screen unless it is escaped and wrapped."""


def check(name: str, status: Status = Status.PASS, seen: str = "seen", *, detail: str = "") -> CheckResult:
    return CheckResult(name=name, status=status, seen=seen, seconds=0.25, detail=detail)


def server(name: str, *checks: CheckResult, log: str = "one\ntwo\n") -> ServerReport:
    return ServerReport(name=name, arguments="IMAGE --port 8080", checks=checks, log=log, seconds=1.5)


def report(*servers: ServerReport, variant: str = "cuda", device: Device = Device.HOST) -> SmokeReport:
    return SmokeReport(
        image=DIGEST,
        variant=variant,
        device=device,
        started="2026-11-23T05:20:42+01:00",
        seconds=72.4,
        servers=servers,
    )


def passed() -> SmokeReport:
    log = "".join(f"0.00.{line:06} I srv  llama_server: a line of {line}\n" for line in range(540))
    seen = "All 16 tokens are right, log-probabilities within 0.0056 (0.02 allowed)."
    names = ("starts", "health", "completion", "malformed request", "sigterm")
    return report(
        *(server(f"quick start, {kind}", *(check(name, seen=seen) for name in names), log=log) for kind in "AB")
    )


def failed() -> SmokeReport:
    failing = report(
        server(
            "quick start, F32",
            check("offloaded", Status.FAIL, "Only 2 of 3 layers are on the device.", detail="tail of the log\n" * 60),
            check("embeddings", Status.SKIP, "the server has none"),
            check("sigterm"),
        ),
        *passed().servers,
    )
    return dataclasses.replace(failing, speeds=SPEEDS)


def hostile() -> SmokeReport:
    """Returns a report in which every text from outside is hostile."""
    hostile_check = check(HOSTILE, Status.FAIL, HOSTILE, detail=HOSTILE)
    hostile_server = ServerReport(name=HOSTILE, arguments=HOSTILE, checks=(hostile_check,), log=HOSTILE, seconds=1)
    return SmokeReport(
        image=HOSTILE,
        variant="cuda",
        device=Device.HOST,
        started="2026-11-23T04:20:42+00:00",
        seconds=1,
        servers=(hostile_server,),
        speeds=HOSTILE_SPEEDS,
    )


HOSTILE_LABELS: dict[str, str] = {HOSTILE: HOSTILE, Label.VERSION: HOSTILE}
HOSTILE_SPEEDS = (Speed(name=HOSTILE, unit=HOSTILE, device=1, cpu=float("nan")),)
