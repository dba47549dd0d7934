"""A soak: many clients ask a server in a container for known answers for minutes, and its memory is watched.

With `kill_every` the container is killed and started again and again meanwhile. What is judged is in `soak_report`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import requests
import urllib3

from base_images.adapters import http_session
from base_images.adapters.container import Container
from base_images.adapters.engine import Engine, Image
from base_images.errors import BaseImagesError, LaunchError
from base_images.labels import Label
from base_images.progress import Listener, Progress, silent
from base_images.smoke import checks_http, containers, model, soak_report
from base_images.smoke import server as servers
from base_images.smoke.checks_http import CheckFailedError, perform
from base_images.smoke.containers import Way
from base_images.smoke.model import KnownAnswer, TensorType
from base_images.smoke.report import Check, Device, ServerReport, Status
from base_images.smoke.soak_report import Answer, Outage, Outcome, Plan, Sample, Seen, SoakReport
from base_images.smoke.verdict import SeenStep, compare

FIRST_SEED = 5000
"""Of the prompts: far from the other seeds."""

SIZES = ((32, 48), (96, 16))
"""Tokens of prompt and answer: mostly generation, and mostly reading."""

PROMPTS = 4
"""Of each size; the reference takes seconds for them."""

PATIENCE = 120.0
"""Seconds for an answer: most of it is the wait for one of the server's slots."""

PAUSE = 0.5
"""Seconds before a client whose request failed asks again."""

LOG_BYTES = 1 << 20
"""Of the server's log that the engine keeps: it has some lines per request."""

SAMPLED_EVERY = 1.0
"""Seconds between two samples of the memory; in a short run less, so that it has `SAMPLES`."""

SAMPLES = 200

TICK = 0.05
"""Seconds; how much later than that a sleeping thread is woken is what the clients themselves add to a latency."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A request and its right answer; what is sent, how the answer comes, and whether it has log-probabilities."""

    path: str
    body: Mapping[str, Any]
    answer: KnownAnswer

    def judge(self, content: bytes) -> str:
        """Returns what is right about an answer that the server ended by itself.

        Raises:
            CheckFailedError: it is wrong, or shorter than what was asked for.
            LookupError, TypeError, ValueError: it has another shape.
        """
        done = True
        parts = [json.loads(content)] if not self.body["stream"] else []
        if self.body["stream"]:
            parts, done = checks_http.read_events(content.decode())
        if self.path == "/completion":
            ended = parts[-1].get("stop_type") == "limit"
            text = "".join(part["content"] for part in parts)
            steps = [step for part in parts for step in part.get("completion_probabilities") or ()]
        else:
            choices = [choice for part in parts for choice in part["choices"]]
            ended = done and choices[-1]["finish_reason"] == "length"
            text = "".join(choice.get("delta", choice.get("message")).get("content") or "" for choice in choices)
            steps = [step for choice in choices for step in (choice.get("logprobs") or {}).get("content") or ()]
        if not ended:
            raise CheckFailedError(f"The answer {text!r} does not say that it ended after the tokens asked for.")
        if steps:
            return checks_http.judge(self.answer, text, steps)
        verdict = compare(self.answer, [SeenStep(text=character) for character in text])
        if not verdict.ok:
            raise CheckFailedError(verdict.reason)
        return verdict.reason


def questions(prompts: int = PROMPTS) -> tuple[Question, ...]:
    """Returns the requests, in the order in which a client sends them: so many prompts of each size, in four ways."""
    found: list[KnownAnswer] = []
    for length, steps in SIZES:
        parts = length // model.PROMPT_TOKENS
        seeds = itertools.count(FIRST_SEED, parts)
        texts = ("".join(map(model.prompt_of, range(seed, seed + parts))) for seed in seeds)
        found += itertools.islice(model.answers(TensorType.F32, texts, steps), prompts)
    return tuple(question for answer in found for question in _ways(answer))


def _ways(answer: KnownAnswer) -> Iterator[Question]:
    """Yields both interfaces, whole and streamed; half with log-probabilities, half with the server's prompt cache."""
    steps, chat = len(answer.steps), [{"role": "user", "content": answer.prompt}]
    exact, cached = dict(checks_http.GREEDY), {**checks_http.GREEDY, "cache_prompt": True}
    completion = {"prompt": answer.prompt, "n_predict": steps}
    messages = {"messages": chat, "max_tokens": steps}
    logprobs = {"logprobs": True, "top_logprobs": model.TOP}
    bodies: tuple[tuple[str, dict[str, Any]], ...] = (
        ("/completion", {**completion, **exact, "n_probs": model.TOP, "stream": False}),
        ("/v1/chat/completions", {**messages, **cached, "stream": True}),
        ("/completion", {**completion, **cached, "stream": True}),
        ("/v1/chat/completions", {**messages, **exact, **logprobs, "stream": False}),
    )
    for path, body in bodies:
        yield Question(path=path, body=body, answer=answer)


@dataclass(kw_only=True)
class _Run:
    """What the clients share: where the server is by now, and what they saw."""

    url: str
    seen: Seen = field(default_factory=Seen)
    started: float = field(default_factory=time.monotonic)
    stopped: threading.Event = field(default_factory=threading.Event)

    def now(self) -> float:
        """Returns the seconds since the start."""
        return time.monotonic() - self.started


def soak(
    engine: Engine,
    image: Image,
    plan: Plan,
    *,
    way: Way | None = None,
    gguf: bytes = b"",
    listener: Listener = silent,
) -> SoakReport:
    """Starts the image's llama-server, lets the clients ask it, and returns the report.

    Args:
        engine: the image's engine.
        image: of any variant; its server runs on the CPU.
        plan: how long, by how many clients, and how often the container is killed.
        way: how the server is started; None: `quick_start`.
        gguf: the model's file; empty: the known-answer model, whose answers are expected in any case.
        listener: called with the progress.

    Raises:
        LaunchError: the server does not start at all.
        EngineError: the engine cannot create the container.
    """
    began, clock = dt.datetime.now(dt.UTC), time.monotonic()
    title = f"soak of {plan.clients} clients"
    listener(Progress(what=title, note="computes the right answers"))
    asked = questions()
    way = way or quick_start(image)
    with containers.prepared(engine, way, gguf or asked[0].answer.gguf) as container:
        servers.start(container, way.port)
        run = _Run(url=servers.url(container, way.port))
        used = time.process_time()
        with _clients(run, plan, asked):
            _watch(run, plan, container, way.port, lambda moment: listener(dataclasses.replace(moment, what=title)))
        run.seen.cores = (time.process_time() - used) / run.now()
        state, log = container.state(), container.logs()
    if not state.running and not any(outage.failure for outage in run.seen.outages):
        run.seen.ended = f"The server ended with exit code {state.exit_code}: see the end of its log."
    listener(Progress(what=title, note=f"{len(run.seen.answers):,} requests", finished=True))
    measured, checks = soak_report.judged(plan, run.seen)
    seconds = time.monotonic() - clock
    name = f"{plan.clients} clients for {plan.seconds / 60:g} min"
    return SoakReport(
        image=image.id,
        variant=image.labels.get(Label.VARIANT, ""),
        device=Device.NONE,
        started=began.isoformat(timespec="seconds"),
        seconds=seconds,
        servers=(ServerReport(name=name, arguments=way.arguments, checks=checks, log=log, seconds=seconds),),
        soak=measured,
    )


def _watch(run: _Run, plan: Plan, container: Container, port: int, listener: Listener) -> None:
    """Samples the container's memory, and kills it when it is time, until the end or the server's own."""
    healthy = 0.0
    while (now := run.now()) < plan.seconds:
        if plan.kill_every and now - healthy >= plan.kill_every:
            run.seen.outages.append(_kill(run, container, port))
            healthy = run.now()
        memory = container.memory()
        if any(outage.failure for outage in run.seen.outages) or (memory is None and not container.state().running):
            return
        if memory is not None:  # as of an engine that has no control group for it
            run.seen.samples.append(Sample(at=run.now(), memory=memory / (1 << 20), load=os.getloadavg()[0]))
        listener(Progress(what="", done=int(now), total=int(plan.seconds), note=f"{len(run.seen.answers):,} requests"))
        time.sleep(min(SAMPLED_EVERY, plan.seconds / SAMPLES))


def quick_start(image: Image) -> Way:
    """Returns the quick start with the server's own verbosity: more lines would cost time, which is measured."""
    way = containers.quick_start(image.id, "known-answer")
    environment = {name: value for name, value in way.container.environment.items() if "VERBOSITY" not in name}
    spec = dataclasses.replace(way.container, environment=environment, log_bytes=LOG_BYTES)
    return dataclasses.replace(way, container=spec)


@contextlib.contextmanager
def _clients(run: _Run, plan: Plan, asked: Sequence[Question]) -> Iterator[None]:
    """Lets the clients ask until the end of the block, and waits for the answers to what they have asked."""
    with ThreadPoolExecutor(plan.clients + 1) as pool:
        try:
            running = [pool.submit(_client, run, asked, number) for number in range(plan.clients)]
            running.append(pool.submit(_tick, run))
            yield
        finally:
            run.stopped.set()
        for one in running:
            one.result()


def _client(run: _Run, asked: Sequence[Question], number: int) -> None:
    with http_session.Session() as session:
        session.trust_env = False
        session.headers["Connection"] = "close"  # one that the server closes at the same moment would count as failed
        while not run.stopped.is_set():
            answer = ask(session, run, asked[number % len(asked)])
            run.seen.answers.append(answer)
            number += 1
            if answer.outcome is Outcome.FAILED:
                run.stopped.wait(PAUSE)


def _tick(run: _Run) -> None:
    while not run.stopped.is_set():
        before = time.monotonic()
        time.sleep(TICK)
        run.seen.delays.append(time.monotonic() - before - TICK)


def ask(session: requests.Session, run: _Run, question: Question) -> Answer:
    """Sends a request, and returns how it ended."""
    at, first, content = run.now(), None, bytearray()

    def ended(outcome: Outcome, reason: str = "") -> Answer:
        return Answer(at=at, seconds=seconds, first=first, outcome=outcome, reason=reason)

    try:
        with http_session.limited(size=checks_http.ANSWER_BYTES, seconds=PATIENCE):
            response = session.post(
                f"{run.url}{question.path}",
                json=question.body,
                stream=True,
                timeout=PATIENCE,  # also to connect: a full queue is part of the latency
                allow_redirects=False,
            )
            for piece in http_session.chunks(response, 1 << 16):
                if first is None and question.body["stream"]:
                    first = run.now() - at
                content += piece
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        seconds = run.now() - at
        return ended(Outcome.FAILED, f"{type(error).__name__}: {error}")
    seconds = run.now() - at
    if response.status_code != requests.codes.ok:
        return ended(Outcome.FAILED, f"status {response.status_code}: {bytes(content[:200])!r}")
    judged = perform(Check.ANSWERS, lambda: question.judge(bytes(content)))
    return ended(Outcome.RIGHT) if judged.status is Status.PASS else ended(Outcome.WRONG, judged.seen)


def _kill(run: _Run, container: Container, port: int) -> Outage:
    """Kills the container and starts it again, and tells the clients its new address."""
    began, failure = run.now(), ""
    container.signal("SIGKILL")
    try:
        if container.wait(servers.READY_TIMEOUT_SECONDS) is None:
            raise LaunchError("The container still runs after it was killed.")
        servers.start(container, port)
        run.url = servers.url(container, port)
    except BaseImagesError as error:
        failure = f"{error}\n{error.detail}"
    return Outage(began=began, ended=run.now(), failure=failure)
