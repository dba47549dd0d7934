"""Smoke checks over HTTP: does a running llama-server work, and give the known answer?

They need only a URL; `runner.py` runs them on the servers that it starts.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urljoin

import requests

from base_images.adapters import http_session
from base_images.errors import BaseImagesError, scrub
from base_images.smoke import model
from base_images.smoke.model import STEPS, TOP, KnownAnswer, TensorType
from base_images.smoke.report import Check, CheckResult, Status
from base_images.smoke.verdict import SeenStep, Verdict, compare, compare_embedding, demanded

CONNECT_SECONDS = 3
ANSWER_SECONDS = 30
"""Between two bytes of an answer."""

WHOLE_ANSWER = 4
"""How often that time may pass until the last byte: streams have pauses."""

ANSWER_BYTES = 32 << 20
"""The script of the web page has 8.8 MB, decompressed, at b11312; every other answer is much smaller."""

SEEN_CHARACTERS = 2000
"""Of a server's words in a result."""

REQUESTS_AT_ONCE = 8

GREEDY: Mapping[str, Any] = {"temperature": 0, "cache_prompt": False}
"""Parameters that make the answer depend on the model alone: no sampling, no cached prompt."""

ANY_PROMPT = "Once upon a time"
"""Prompt for a model without a known answer."""

MINIMAL_SCRIPT_BYTES = 100_000
"""The script of the web page has 2.6 MB, compressed, at b11312; a smaller one is a stub."""

_MODELS_LISTED = 10
"""Names of models in a message."""

MALFORMED: Mapping[str, tuple[int, ...]] = {
    '{"messages": [': (400, 500),  # b11312 answers invalid JSON with an error of the server
    '{"messages": "hello"}': (400,),
    '{"messages": [{"role": "user", "content": "hello"}], "max_tokens": "many"}': (400,),
    "{}": (400,),
}
"""Malformed bodies for the chat endpoint, and the status codes that may refuse them."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A running llama-server and its right answer.

    Attributes:
        url: without a trailing slash.
        alias: the model's name in the server's answers.
        answer: the right answer of its model; None if unknown: then only the form of the answer is checked.
        patience: seconds to wait between two bytes of an answer.
        ours: whether it was started for these checks; features that somebody else disabled are skipped, not failed.
        key: its API key; empty for none.
    """

    url: str
    alias: str
    answer: KnownAnswer | None
    patience: float = ANSWER_SECONDS
    ours: bool = True
    key: str = field(default="", repr=False)

    @property
    def prompt(self) -> str:
        """The prompt to send."""
        return self.answer.prompt if self.answer else ANY_PROMPT


class CheckFailedError(Exception):
    """A check failed; the text is one line, `detail` has further information."""

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class CheckSkippedError(Exception):
    """A check does not apply; the text says why."""


def perform(name: str, check: Callable[[], str]) -> CheckResult:
    """Runs a check, which returns its observation or raises, and returns the result."""
    started = time.monotonic()
    detail = ""
    try:
        status, seen = Status.PASS, check()
    except CheckSkippedError as error:
        status, seen = Status.SKIP, str(error)
    except (CheckFailedError, BaseImagesError) as error:
        status, seen, detail = Status.FAIL, str(error), error.detail
    except http_session.LimitError as error:
        status, seen = Status.FAIL, f"The server's answer was not read to its end: {error}."
    # The JSONDecodeError of requests is a ValueError.
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        status, seen = Status.FAIL, f"The answer has another shape than expected: {type(error).__name__}: {error}"
    except requests.RequestException as error:
        status, seen = Status.FAIL, f"The server gave no answer: {error}"
    seen = seen if len(seen) <= SEEN_CHARACTERS else f"{seen[:SEEN_CHARACTERS]} …"
    return CheckResult(
        name=name, status=status, seen=scrub(seen), seconds=time.monotonic() - started, detail=scrub(detail)
    )


# --- The checks. Each returns its observation on one line, or raises. ---


def check_health(target: Target) -> str:
    """`/health` answers 200 and `{"status": "ok"}`."""
    answer = _expect_ok(_get(target, f"{target.url}/health")).json()
    if answer != {"status": "ok"}:
        raise CheckFailedError(f"/health answers {answer}.")
    return f"200, {json.dumps(answer)}"


def check_models(target: Target) -> str:
    """`/v1/models` lists the model by its alias and, on our own server, no other."""
    answer = _expect_ok(_get(target, f"{target.url}/v1/models")).json()
    names = [entry["id"] for entry in answer["data"]]
    if names != [target.alias] and (target.ours or target.alias not in names):
        raise CheckFailedError(f"/v1/models offers {names} instead of {target.alias!r}.")
    return f"offers {', '.join(names)}"


def check_completion(target: Target) -> str:
    """`/completion`, llama-server's own interface, gives the known answer."""
    body = {"model": target.alias, "prompt": target.prompt, "n_predict": STEPS, "n_probs": TOP, **GREEDY}
    answer = _expect_ok(_post(target, "/completion", body)).json()
    return judge(target.answer, answer["content"], answer["completion_probabilities"])


def check_openai_completion(target: Target) -> str:
    """`/v1/completions` gives the known answer."""
    body = {"model": target.alias, "prompt": target.prompt, "max_tokens": STEPS, "logprobs": TOP, **GREEDY}
    choice = _expect_ok(_post(target, "/v1/completions", body)).json()["choices"][0]
    return judge(target.answer, choice["text"], choice["logprobs"]["content"])


def check_chat(target: Target) -> str:
    """`/v1/chat/completions` gives the known answer."""
    choice = _expect_ok(_post(target, "/v1/chat/completions", _chat(target))).json()["choices"][0]
    return judge(target.answer, choice["message"]["content"], choice["logprobs"]["content"])


def check_chat_streamed(target: Target) -> str:
    """`/v1/chat/completions` with `stream` gives the known answer in events, and ends with `[DONE]`."""
    response = _post(target, "/v1/chat/completions", {**_chat(target), "stream": True})
    _expect_ok(response, "text/event-stream")
    events, done = read_events(response.content.decode())
    if not done:
        raise CheckFailedError("The stream ends without [DONE].", detail=_excerpt(response))
    choices = [choice for event in events for choice in event["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    steps = [step for choice in choices for step in (choice.get("logprobs") or {"content": []})["content"]]
    return f"{judge(target.answer, text, steps)} {len(events)} events and [DONE]."


def check_embeddings(target: Target) -> str:
    """`/v1/embeddings` gives the reference's embedding of the prompt."""
    return judge_embedding(target.answer, embedding_of(target))


def check_at_once(target: Target) -> str:
    """Eight concurrent requests each get the known answer."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        requested = [pool.submit(check_completion, target) for _ in range(REQUESTS_AT_ONCE)]
    wrong = [str(error) for future in requested if (error := future.exception())]
    if wrong:
        raise CheckFailedError(
            f"{len(wrong)} of {REQUESTS_AT_ONCE} requests at once went wrong, such as: {wrong[0]}",
            detail="\n".join(wrong),
        )
    return f"{_description(target)} {REQUESTS_AT_ONCE} times"


def check_web_page(target: Target) -> str:
    """`/` is the real web page, and its script exists."""
    # Both are stored compressed and refused to a client that does not accept gzip, which requests does.
    response = _get(target, f"{target.url}/")
    if response.status_code == requests.codes.not_found and not target.ours:
        raise CheckSkippedError("the server was started without its web page")
    page = _expect_ok(response, "text/html")
    script = find_script(page.text)
    if script is None:
        raise CheckFailedError("The page at / imports no script: it is not the web UI.", detail=_excerpt(page))
    where = urljoin(f"{target.url}/", script)
    if http_session.origin(where) != http_session.origin(target.url):
        raise CheckFailedError("The page at / imports a script of another server, which is not requested.")
    code = _expect_ok(_get(target, where), "javascript").content
    if len(code) < MINIMAL_SCRIPT_BYTES:
        raise CheckFailedError(f"{script} has only {len(code):,} bytes.")
    return f"HTML of {len(page.content):,} bytes, {PurePosixPath(script).name} of {len(code):,}"


def check_malformed(target: Target) -> str:
    """Malformed requests are refused with a reason, and the next valid one still gets the known answer."""
    codes = []
    for body, allowed in MALFORMED.items():
        response = _request(
            "POST",
            f"{target.url}/v1/chat/completions",
            key=target.key,
            data=body,
            headers={"Content-Type": "application/json"},
        )
        codes.append(response.status_code)
        if response.status_code not in allowed or not response.json()["error"]["message"]:
            raise CheckFailedError(
                f"The malformed request {body} is answered with {response.status_code}.", detail=_excerpt(response)
            )
    check_completion(target)
    return f"refused with {', '.join(map(str, codes))}; then {_description(target)}"


CHECKS: Mapping[Check, Callable[[Target], str]] = {
    Check.HEALTH: check_health,
    Check.MODELS: check_models,
    Check.COMPLETION: check_completion,
    Check.OPENAI_COMPLETION: check_openai_completion,
    Check.CHAT: check_chat,
    Check.CHAT_STREAMED: check_chat_streamed,
    Check.EMBEDDINGS: check_embeddings,
    Check.AT_ONCE: check_at_once,
    Check.WEB_PAGE: check_web_page,
    Check.MALFORMED: check_malformed,
}
"""Every check over HTTP."""


def find_model(target: Target, name: str = "") -> tuple[str, TensorType | None]:
    """Returns the model of a running server, and its type if it is a known-answer model, else None.

    Known-answer models are recognised by the size and type in `/v1/models` (b11312).

    Args:
        target: the server.
        name: an id or alias of the model, for a server with several (a router, b10454); empty for the only one.

    Raises:
        CheckFailedError: the server has no such model, has several, wants a key, or does not answer as llama-server.
    """
    offered = _offered(target)
    names = [entry["id"] for entry in offered]
    listed = ", ".join(names[:_MODELS_LISTED]) + (", …" if len(names) > _MODELS_LISTED else "")
    if not offered:
        raise CheckFailedError("The server offers no model.")
    found = [entry["id"] for entry in offered if name in ("", entry["id"], *(entry.get("aliases") or ()))]
    if not found:
        raise CheckFailedError(f"The server has no model {name!r}: name one of {listed} with --model-name.")
    if len(found) > 1:
        raise CheckFailedError(f"The server has {len(names)} models, {listed}: name one with --model-name.")
    [alias] = found
    # /v1/models needs no key. A router knows a model's size once it has loaded it, which this request makes it do.
    _expect_ok(_post(target, "/tokenize", {"model": alias, "content": ANY_PROMPT}))
    meta = next((entry.get("meta") for entry in _offered(target) if entry["id"] == alias), None) or {}
    size = (meta.get("n_vocab"), meta.get("n_embd"), meta.get("n_ctx_train"))
    words = re.findall(r"\w+", str(meta.get("ftype")))
    known = next((tensor_type for tensor_type in TensorType if tensor_type in words), None)
    return alias, known if size == (len(model.TOKENS), model.WIDTH, model.CONTEXT) else None


# --- Requests and answers. ---


def _offered(target: Target) -> list[dict[str, Any]]:
    offered: list[dict[str, Any]] = _expect_ok(_get(target, f"{target.url}/v1/models")).json()["data"]
    return offered


def is_healthy(url: str) -> bool:
    """Returns whether a server is ready; while it loads its model it answers 503, before that not at all."""
    try:
        return _request("GET", f"{url}/health", whole=1).ok
    except requests.RequestException:
        return False


def read_events(stream: str) -> tuple[list[dict[str, Any]], bool]:
    """Returns the events of a stream in OpenAI's format, and whether `[DONE]` was the last.

    Raises:
        ValueError: an event is not JSON.
    """
    data = [line.removeprefix("data: ") for line in stream.split("\n") if line.startswith("data: ")]
    done = data[-1:] == ["[DONE]"]
    return [json.loads(event) for event in (data[:-1] if done else data)], done


def find_script(page: str) -> str | None:
    """Returns the path of the script that SvelteKit's page imports to start, None if there is none."""
    found = re.search(r"""import\(["']([^"']+\.js)["']\)""", page)
    return found[1] if found else None


def post(url: str, body: Mapping[str, Any], *, key: str = "", patience: float = ANSWER_SECONDS) -> Any:
    """Sends `body` as JSON and returns the decoded answer; raises `CheckFailedError` unless the status is 200."""
    return _expect_ok(_request("POST", url, key=key, patience=patience, json=body)).json()


def embedding_of(target: Target) -> list[float]:
    """Returns the embedding that the server gives to the prompt."""
    response = _post(target, "/v1/embeddings", {"model": target.alias, "input": target.prompt})
    if response.status_code == requests.codes.not_implemented and not target.ours:
        raise CheckSkippedError("the server was started without --embeddings")
    embedding: list[float] = _expect_ok(response).json()["data"][0]["embedding"]
    return embedding


def get(url: str, *, patience: float = ANSWER_SECONDS) -> Any:
    """Returns the decoded answer of a URL; raises `CheckFailedError` unless the status is 200."""
    return _expect_ok(_request("GET", url, patience=patience)).json()


def judge_embedding(answer: KnownAnswer | None, embedding: Sequence[float]) -> str:
    """Compares an embedding of the prompt with the known answer's, if that is known.

    Raises:
        CheckFailedError: it differs; without a known answer: it is empty or not finite.
    """
    if answer:
        return _expect(compare_embedding(answer, embedding))
    if not embedding or not all(map(math.isfinite, embedding)):
        raise CheckFailedError(f"The embedding is {embedding[:8]} …: not all of it is a number.")
    return f"{len(embedding)} numbers, not judged"


def _request(
    method: str,
    url: str,
    *,
    key: str = "",
    patience: float = ANSWER_SECONDS,
    whole: int = WHOLE_ANSWER,
    **arguments: Any,
) -> requests.Response:
    with http_session.Session() as session, http_session.limited(size=ANSWER_BYTES, seconds=whole * patience):
        session.trust_env = False  # a proxy from the environment cannot reach a server on this machine
        if key:
            session.headers["Authorization"] = f"Bearer {key}"
        # A redirect is not followed: what another server answers says nothing about this one.
        return session.request(method, url, timeout=(CONNECT_SECONDS, patience), allow_redirects=False, **arguments)


def _get(target: Target, url: str) -> requests.Response:
    return _request("GET", url, key=target.key)


def _post(target: Target, path: str, body: Mapping[str, Any]) -> requests.Response:
    return _request("POST", f"{target.url}{path}", key=target.key, patience=target.patience, json=body)


def _expect_ok(response: requests.Response, content_type: str = "") -> requests.Response:
    if response.status_code == requests.codes.unauthorized:
        raise CheckFailedError(
            "The server refuses the API key: name the file that has its own with --api-key-file."
            if "Authorization" in response.request.headers
            else "The server asks for an API key: name the file that has it with --api-key-file."
        )
    if response.status_code != requests.codes.ok:
        raise CheckFailedError(f"{response.url} answers {response.status_code}.", detail=_excerpt(response))
    if content_type not in (observed := response.headers.get("Content-Type", "")):
        raise CheckFailedError(f"{response.url} is {observed} instead of {content_type}.", detail=_excerpt(response))
    return response


def _excerpt(response: requests.Response) -> str:
    # Not `text`, which guesses the encoding from all of a large answer.
    return response.content[: 4 * SEEN_CHARACTERS].decode("utf-8", errors="replace")[:SEEN_CHARACTERS]


def _chat(target: Target) -> dict[str, Any]:
    return {
        "model": target.alias,
        "messages": [{"role": "user", "content": target.prompt}],
        "max_tokens": STEPS,
        "logprobs": True,
        "top_logprobs": TOP,
        **GREEDY,
    }


def _number(value: float | None) -> float:
    # JSON has no NaN: a broken kernel's log-probability arrives as null, which must not be taken for "not requested".
    return math.nan if value is None else value


def _description(target: Target) -> str:
    return "the known answer" if target.answer else "an answer"


def judge(answer: KnownAnswer | None, text: str, steps: Sequence[Mapping[str, Any]]) -> str:
    """Compares an answer's text and its tokens' log-probabilities with the known answer, if that is known.

    Raises:
        CheckFailedError: it is wrong; without a known answer: it is empty, or has something that is not a number.
    """
    seen = [
        SeenStep(
            text=step["token"],
            log_probability=_number(step["logprob"]),
            top=tuple((entry["token"], _number(entry["logprob"])) for entry in step["top_logprobs"]),
        )
        for step in steps
    ]
    if answer is None:
        if not seen or not all(math.isfinite(_number(step.log_probability)) for step in seen):
            raise CheckFailedError(f"The answer {text!r} has no tokens, or some whose probability is not a number.")
        return f"{len(seen)} tokens with their log-probabilities, not judged."
    reason = _expect(compare(answer, seen))
    if text != "".join(step.text for step in seen) or not text.startswith(demanded(answer)):
        raise CheckFailedError(f"The text is {text!r} where {answer.text!r} is right, though its tokens are.")
    return reason


def _expect(verdict: Verdict) -> str:
    if not verdict.ok:
        raise CheckFailedError(verdict.reason)
    return verdict.reason
