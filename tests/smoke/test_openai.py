"""OpenAI's client on a real server, and on answers that a relay changes."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator

import pytest
import requests

from base_images.adapters.engine import Engine, Image
from base_images.smoke import checks_client, containers, model
from base_images.smoke.checks_http import CheckFailedError, CheckSkippedError, Target, perform
from base_images.smoke.model import TensorType
from base_images.smoke.report import Check, Status
from tests.smoke.conftest import ANSWER, started
from tests.support.servers import Handler, serving


@pytest.mark.parametrize("name", checks_client.CHECKS)
def test_check(target: Target, name: Check) -> None:
    result = perform(name, lambda: checks_client.CHECKS[name](target))
    assert result.status is Status.PASS, result.seen


def test_the_observations(target: Target) -> None:
    assert checks_client.check_models(target) == f"offers {target.alias}"
    assert checks_client.check_chat(target) == (f"{ANSWER.text!r}, and the same in 16 pieces; length, 32 + 16 tokens")
    assert checks_client.check_completion(target) == f"{ANSWER.text!r}; length, 32 + 16 tokens"


@pytest.mark.parametrize("name", checks_client.CHECKS)
def test_a_model_without_a_known_answer_is_not_judged(target: Target, name: Check) -> None:
    result = perform(name, lambda: checks_client.CHECKS[name](dataclasses.replace(target, answer=None)))
    assert result.status is Status.PASS, result.seen


@pytest.mark.parametrize("name", ["client: chat", "client: completion", "client: embeddings"])
def test_another_answer_than_expected_fails(target: Target, name: Check) -> None:
    other = model.known_answer(TensorType.Q8_0)
    # The prompt is the same, so that only the answer differs.
    wrong = dataclasses.replace(ANSWER, text=other.text, embedding=other.embedding)
    with pytest.raises(CheckFailedError, match=r"The answer is '.*' where '.*' is right|cosine distance"):
        checks_client.CHECKS[name](dataclasses.replace(target, answer=wrong))


def test_another_model_name_fails(target: Target) -> None:
    with pytest.raises(CheckFailedError, match=rf"offered \['{target.alias}'\] and not 'other'"):
        checks_client.check_models(dataclasses.replace(target, alias="other"))


@pytest.mark.parametrize("name", checks_client.CHECKS)
def test_a_missing_server_fails(name: Check) -> None:
    nobody = Target(url="http://127.0.0.1:9", alias="model", answer=ANSWER)
    with pytest.raises(CheckFailedError, match="OpenAI's client ends with APIConnectionError"):
        checks_client.CHECKS[name](nobody)


def test_a_server_without_embeddings(engine: Engine, cpu_image: Image) -> None:
    way = containers.quick_start(cpu_image.id, "model")
    with started(engine, way) as (_, target):
        checks_client.check_chat(target)
        with pytest.raises(CheckFailedError, match="does not support embeddings"):
            checks_client.check_embeddings(target)
        with pytest.raises(CheckSkippedError, match="started without --embeddings"):
            checks_client.check_embeddings(dataclasses.replace(target, ours=False))


@contextlib.contextmanager
def relay(url: str, change: Callable[[bytes], bytes]) -> Iterator[str]:
    """Yields the URL of a relay to a server that changes the body of each answer to a POST."""

    class Relay(Handler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with requests.Session() as session:
                session.trust_env = False
                answer = session.post(url + self.path, body, headers={"Content-Type": "application/json"}, timeout=30)
            self.answer(answer.status_code, change(answer.content), Content_Type=answer.headers["Content-Type"])

    with serving(Relay) as address:
        yield f"http://{address}"


def is_stream(body: bytes) -> bool:
    return body.startswith(b"data: ")


def without_an_event(body: bytes) -> bytes:
    events = body.split(b"\n\n")
    return b"\n\n".join(events[:3] + events[4:]) if is_stream(body) else body


def without_an_end(body: bytes) -> bytes:
    return body.replace(b'"finish_reason":"length"', b'"finish_reason":null') if is_stream(body) else body


def without_usage(body: bytes) -> bytes:
    return body.replace(b'"usage":', b'"used":') if is_stream(body) else body


def without_a_role(body: bytes) -> bytes:
    return body.replace(b'"role":"assistant",', b"") if is_stream(body) else body


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_an_event, "The pieces of the stream add up to"),
        (without_an_end, r"The stream ends with \[\] instead of one reason"),
        (without_usage, "does not say how many tokens"),
        (without_a_role, "begins with the role None"),
        (lambda body: body.replace(b'"length"', b'"content_filter"'), "ends for the reason 'content_filter'"),
        (lambda body: body.replace(b'"completion_tokens":16', b'"completion_tokens":17'), "do not add up: 32 . 17"),
        (lambda body: body.replace(b"{", b"[", 1), "Expecting|ends with|another shape"),
    ],
)
def test_a_changed_answer_fails(target: Target, change: Callable[[bytes], bytes], reason: str) -> None:
    with relay(target.url, lambda body: body) as url:
        checks_client.check_chat(dataclasses.replace(target, url=url))
    with relay(target.url, change) as url:
        result = perform("chat", lambda: checks_client.check_chat(dataclasses.replace(target, url=url)))
    assert result.status is Status.FAIL
    assert re.search(reason, result.seen), result.seen
