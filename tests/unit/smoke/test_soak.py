"""A soak without a server of llama.cpp's: what a client takes for right, wrong or failed, and the verdict."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import requests

from base_images import settings
from base_images.errors import UsageError
from base_images.recipes import markdown
from base_images.smoke import html, soak, soak_report
from base_images.smoke.report import Device, ServerReport, Status
from base_images.smoke.soak import Question
from base_images.smoke.soak_report import Answer, Outage, Outcome, Plan, Sample, Seen, SoakReport
from tests.support import documents, servers

KEPT = settings.ROOT / "docs" / "soak"
PLAN = Plan(clients=20, seconds=600)
KILLED = Plan(clients=20, seconds=600, kill_every=20)


@pytest.fixture(scope="module")
def asked() -> Sequence[Question]:
    return soak.questions(prompts=1)


def test_the_questions_are_of_two_sizes_in_four_ways(asked: Sequence[Question]) -> None:
    assert [(len(one.answer.prompt), len(one.answer.text)) for one in asked] == [(32, 48)] * 4 + [(96, 16)] * 4
    ways = {(one.path, one.body["stream"], one.body["cache_prompt"]) for one in asked}
    assert len(ways) == 4
    assert all(one.answer.margin > one.answer.limits.lead for one in asked)


# --- one request ---


def completion(question: Question, text: str, **more: Any) -> dict[str, Any]:
    """Returns llama-server's answer of /completion; the log-probabilities are right whatever the text is."""
    steps = [
        {
            "token": character,
            "logprob": right.log_probability,
            "top_logprobs": [{"token": token, "logprob": number} for token, number in right.top],
        }
        for character, right in zip(text, question.answer.steps, strict=False)
    ]
    return {"content": text, "completion_probabilities": steps, "stop_type": "limit", **more}


def events(text: str, *, done: bool = True) -> bytes:
    """Returns a stream of the chat endpoint."""
    deltas: list[dict[str, str | None]] = [{"role": "assistant", "content": None}]
    deltas += [{"content": one} for one in text]
    choices: list[dict[str, Any]] = [{"delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"delta": {}, "finish_reason": "length"})
    parts = [f"data: {json.dumps({'choices': [choice]})}\n\n" for choice in choices]
    return "".join([*parts, "data: [DONE]\n\n"] if done else parts[:-1]).encode()


def ended(question: Question, content: bytes, *, status: int = 200, claimed: int | None = None) -> Answer:
    """Returns how a request ends to which a server answers this, and then closes the connection.

    `claimed` is its Content-Length; without it the answer is one chunk, and -1 leaves out the last chunk.
    """

    class Answering(servers.Handler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            if claimed is not None and claimed >= 0:
                self.send_header("Content-Length", str(claimed))
            else:
                self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            framed = claimed is not None and claimed >= 0
            self.wfile.write(content if framed else b"%x\r\n%s\r\n" % (len(content), content))
            if claimed is None:
                self.wfile.write(b"0\r\n\r\n")
            self.close_connection = True

    with servers.serving(Answering) as address, requests.Session() as session:
        return soak.ask(session, soak._Run(url=f"http://{address}"), question)


def whole(question: Question, text: str, **more: Any) -> bytes:
    return json.dumps(completion(question, text, **more)).encode()


def test_a_right_answer_is_right_whole_and_streamed(asked: Sequence[Question]) -> None:
    answer = ended(asked[0], content := whole(asked[0], asked[0].answer.text), claimed=len(content))
    assert (answer.outcome, answer.reason, answer.first) == (Outcome.RIGHT, "", None)
    answer = ended(asked[1], events(asked[1].answer.text))
    assert (answer.outcome, answer.reason) == (Outcome.RIGHT, "")
    assert answer.first is not None
    assert 0 < answer.first <= answer.seconds


def test_an_answer_that_is_shorter_than_it_says_is_wrong(asked: Sequence[Question]) -> None:
    question, streamed = asked[:2]
    short = question.answer.text[:-1]
    content = whole(question, short)
    assert "47 tokens where 48 are right" in ended(question, content, claimed=len(content)).reason
    assert "47 tokens where 48 are right" in ended(streamed, events(short)).reason
    # The end of the body is a claim too: HTTP says that this is all.
    for content in (events(short, done=False), b"", b"{"):
        answer = ended(streamed if content.startswith(b"data") else question, content)
        assert answer.outcome is Outcome.WRONG, answer
    assert ended(question, whole(question, question.answer.text, stop_type="eos")).outcome is Outcome.WRONG


def test_one_other_token_is_wrong(asked: Sequence[Question]) -> None:
    question, streamed = asked[:2]
    text = question.answer.text[:-1] + ("x" if question.answer.text[-1] != "x" else "y")
    for answer in (ended(question, whole(question, text)), ended(streamed, events(text))):
        assert answer.outcome is Outcome.WRONG
        assert answer.reason.startswith("Step 48 is ")


def test_a_cut_or_refused_request_has_failed(asked: Sequence[Question]) -> None:
    question, streamed = asked[:2]
    content = whole(question, question.answer.text)
    cut = events(streamed.answer.text)[:300]
    for answer in (
        ended(question, content[:-5], claimed=len(content)),
        ended(streamed, cut, claimed=-1),
        ended(question, b'{"error": {"message": "Loading model"}}', status=503),
        soak.ask(requests.Session(), soak._Run(url="http://127.0.0.1:1"), question),
    ):
        assert answer.outcome is Outcome.FAILED
        assert answer.reason


# --- the verdict ---


def right(at: float, seconds: float = 2.0) -> Answer:
    return Answer(at=at, seconds=seconds, first=1.0, outcome=Outcome.RIGHT)


def lost(at: float, seconds: float = 2.0) -> Answer:
    return Answer(at=at, seconds=seconds, first=None, outcome=Outcome.FAILED, reason="cut")


def samples(*memory: float) -> list[Sample]:
    """Returns samples at equal distances over the whole run."""
    return [Sample(at=600 * number / len(memory), memory=mib, load=3.0) for number, mib in enumerate(memory)]


def statuses(plan: Plan, seen: Seen) -> dict[str, Status]:
    return {check.name: check.status for check in soak_report.judged(plan, seen)[1]}


def test_a_right_run_passes_with_its_numbers() -> None:
    answers = [right(number, seconds) for number, seconds in enumerate([1.0] * 98 + [3.0, 9.0])]
    seen = Seen(answers=answers, samples=samples(*[50.0] * 600), delays=[0.001])
    measured, checks = soak_report.judged(PLAN, seen)
    assert {check.name: check.status for check in checks} == dict.fromkeys(("answers", "failures", "memory"), "pass")
    assert measured.latency == soak_report.spread([1.0] * 98 + [3.0, 9.0])
    assert measured.latency is not None
    assert (measured.latency.p50, measured.latency.largest) == (1.0, 9.0)
    assert measured.per_second == 100 / 108
    assert [moment.latency.p50 for moment in measured.series if moment.latency][-1] == 9.0


@pytest.mark.parametrize(
    ("seen", "failing"),
    [
        (Seen(), "answers"),
        (Seen(answers=[right(0), dataclasses.replace(right(1), outcome=Outcome.WRONG, reason="x")]), "answers"),
        (Seen(answers=[right(0), lost(1)]), "failures"),
        (Seen(answers=[right(0)], ended="The server ended with exit code 139."), "failures"),
    ],
)
def test_whatever_is_wrong_fails_its_check(seen: Seen, failing: str) -> None:
    found = statuses(PLAN, seen)
    assert [name for name, status in found.items() if status is Status.FAIL] == [failing]


def test_a_request_may_fail_only_while_a_killed_server_is_away() -> None:
    outages = [Outage(began=20, ended=25)]
    for at, allowed in ((17, False), (19, True), (22, True), (25, True), (25.1, False)):
        found = statuses(KILLED, Seen(answers=[right(0), lost(at)], outages=outages))
        assert (found["failures"] is Status.PASS) == allowed, at
    assert statuses(KILLED, Seen(answers=[right(0)], outages=outages))["restarts"] is Status.PASS


def test_a_server_that_does_not_come_back_or_was_not_killed_fails() -> None:
    dead = [Outage(began=20, ended=80, failure="not healthy within 60 s")]
    for outages in (dead, []):
        assert statuses(KILLED, Seen(answers=[right(0)], outages=outages))["restarts"] is Status.FAIL


SETTLING = [36.6, 45.0, 42.2, 45.7, 46.0, 47.4, 48.1, 48.4, 48.5, 50.0, 51.1, 51.6, 51.8, 52.4, 53.9, 52.5, 52.6, 52.6]
"""MiB of llama-server b10454 with 200 clients; then it stays there."""


@pytest.mark.parametrize(
    ("memory", "status"),
    [
        ([*SETTLING, *[53.4] * 100], Status.PASS),
        ([53.4 + 25 * (number % 7 == 0) for number in range(300)], Status.PASS),  # health checks
        ([53.4 + number % 9 for number in range(300)], Status.PASS),
        ([53.4 + 13 * number / 300 for number in range(300)], Status.FAIL),  # 1.3 MiB a minute
        ([53.4 + 25 * (number % 7 == 0) + 20 * number / 300 for number in range(300)], Status.FAIL),
        ([53.4] * 3, Status.SKIP),
    ],
)
def test_memory_that_settles_or_is_noisy_is_flat_and_a_leak_is_not(memory: list[float], status: Status) -> None:
    assert statuses(PLAN, Seen(answers=[right(0)], samples=samples(*memory)))["memory"] is status


@pytest.mark.parametrize(("per_life", "status"), [(0.0, Status.PASS), (1.0, Status.FAIL)])
def test_of_killed_servers_lives_are_compared(per_life: float, status: Status) -> None:
    outages = [Outage(began=20.0 + 22 * number, ended=22.0 + 22 * number) for number in range(27)]
    memory = [30 + per_life * (second // 22) + (second % 22) / 2 for second in range(600)]  # each life grows
    found = statuses(KILLED, Seen(answers=[right(0)], samples=samples(*memory), outages=outages))
    assert found["memory"] is status


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (Plan(clients=0, seconds=60), "1 to 1,000 clients"),
        (Plan(clients=1001, seconds=60), "1 to 1,000 clients"),
        (Plan(clients=1, seconds=0), "a second or more"),
        (Plan(clients=1, seconds=float("nan")), "a second or more"),
        (Plan(clients=1, seconds=60, kill_every=60), "fewer than the soak's"),
        (Plan(clients=1, seconds=60, kill_every=-1), "1 or more"),
    ],
)
def test_an_impossible_plan_is_one_sentence(plan: Plan, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan.require_possible()


# --- the picture ---


def report(plan: Plan, seen: Seen) -> SoakReport:
    measured, checks = soak_report.judged(plan, seen)
    server = ServerReport(name="20 clients", arguments="IMAGE", checks=checks, log="a <log>", seconds=600)
    return SoakReport(
        image="sha256:1",
        variant="cpu <&",
        device=Device.NONE,
        started="2026-11-26T23:00:00+00:00",
        seconds=600,
        servers=(server,),
        soak=measured,
    )


def test_the_picture_has_the_lines_and_the_kills_and_is_in_the_page() -> None:
    answers = [right(number, 1 + number % 5) for number in range(590)]
    outages = [Outage(began=100, ended=103), Outage(began=300, ended=303)]
    made = report(KILLED, Seen(answers=answers, samples=samples(*[50.0] * 600), outages=outages))
    drawing = ET.fromstring(made.picture)  # noqa: S314 - ours
    name = "{http://www.w3.org/2000/svg}"
    lines = [line.get("points", "").split() for line in drawing.iter(f"{name}polyline")]
    assert [len(points) for points in lines] == [60] * 5
    width, height = map(float, drawing.attrib["viewBox"].split()[2:])
    for x, y in (map(float, point.split(",")) for points in lines for point in points):
        assert 0 < x < width
        assert 0 < y < height
    assert len([line for line in drawing.iter(f"{name}line") if line.get("stroke-dasharray")]) == 2 * len(outages)
    page = html.as_html(dataclasses.replace(made, variant="cpu"), labels={})
    assert "<svg " in page
    assert dataclasses.replace(made, variant="cpu").picture.strip() in page


def test_a_run_without_an_answer_has_a_picture_too() -> None:
    assert ET.fromstring(report(PLAN, Seen()).picture) is not None  # noqa: S314 - ours


# --- the kept runs ---


def quantiles(spread: Mapping[str, float]) -> str:
    return ", ".join(f"{spread[name]:.1f}" for name in ("p50", "p90", "p99")) + " s"


def kept_table() -> str:
    """Returns the table of docs/testing.md."""
    rows: list[tuple[str, ...]] = [("", "200 clients", "killed every 20 s")]
    runs = [
        json.loads((KEPT / name).read_text(encoding="utf-8"))
        for name in ("200-clients.json", "200-clients-killed.json")
    ]
    assert [run["ok"] for run in runs] == [True, True]
    seen = [run["soak"] for run in runs]
    assert [(one["plan"]["clients"], one["plan"]["seconds"]) for one in seen] == [(200, 600)] * 2

    def row(name: str, value: Callable[[Mapping[str, Any]], str]) -> None:
        rows.append((name, *map(value, seen)))

    row("answers, all right", lambda one: f"{one['right']:,}")
    row("answers a second", lambda one: f"{one['per_second']:.1f}")
    row("failed requests", lambda one: f"{one['failed']:,}")
    row("failed in a restart", lambda one: f"{one['failed_in_restarts']:,}" if one["kills"] else "-")
    row("latency: p50, p90, p99", lambda one: quantiles(one["latency"]))
    row("first token of a stream: p50, p90, p99", lambda one: quantiles(one["first_token"]))
    row("memory", lambda one: f"{one['memory']['first']:.1f} to {one['memory']['last']:.1f} MiB")
    row(
        "its slope, and standard error",
        lambda one: "{per_minute:+.2f} MiB a minute, {error:.2f}".format(**one["memory"]),
    )
    row(
        "restarts",
        lambda one: f"{len(one['restarts'])}, in {max(one['restarts']):.1f} s at most" if one["kills"] else "-",
    )
    row("load average", lambda one: f"{one['load']['p50']:.0f}, at most {one['load']['largest']:.0f}")
    return markdown.table(rows)


def test_the_document_has_the_numbers_of_the_kept_runs() -> None:
    made = kept_table()
    assert made in documents.TEXTS["docs/testing.md"], f"docs/testing.md should have this table:\n{made}"
