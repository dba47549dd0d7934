"""Smoke checks with OpenAI's own Python client, as users of llama-server have it, with and without streaming.

`checks_http.py` checks each field of the answers; the client shows that they are the fields it needs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import httpx2
import openai
import requests
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionMessageParam

from base_images.adapters import http_session
from base_images.smoke.checks_http import (
    ANSWER_BYTES,
    CONNECT_SECONDS,
    WHOLE_ANSWER,
    CheckFailedError,
    CheckSkippedError,
    Target,
    judge_embedding,
)
from base_images.smoke.model import STEPS
from base_images.smoke.report import Check
from base_images.smoke.verdict import demanded

NOT_IMPLEMENTED = 501
"""The status of b11312's answer to a request for embeddings when it was started without --embeddings."""


def check_models(target: Target) -> str:
    """The model is listed by its alias."""
    with _client(target) as client:
        names = [offered.id for offered in client.models.list()]
    if target.alias not in names:
        raise CheckFailedError(f"The client is offered {names} and not {target.alias!r}.")
    return f"offers {', '.join(names)}"


def check_chat(target: Target) -> str:
    """A chat of several turns is answered, and a stream gives the same answer in pieces."""
    with _client(target) as client:
        whole = client.chat.completions.create(
            model=target.alias,
            messages=turns(target.prompt),
            max_tokens=STEPS,
            temperature=0,
            extra_body={"cache_prompt": False},
        )
        chunks = list(
            client.chat.completions.create(
                model=target.alias,
                messages=turns(target.prompt),
                max_tokens=STEPS,
                temperature=0,
                extra_body={"cache_prompt": False},
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    text = whole.choices[0].message.content or ""
    _expect_end(target, text, whole.choices[0].finish_reason, whole.usage)
    choices = [choice for chunk in chunks for choice in chunk.choices]
    pieces = [choice.delta.content for choice in choices if choice.delta.content]
    if "".join(pieces) != text:
        raise CheckFailedError(f"The pieces of the stream add up to {''.join(pieces)!r} where {text!r} is right.")
    if len(text) > 1 and len(pieces) == 1:
        raise CheckFailedError("The stream comes in one piece.")
    if choices[0].delta.role != "assistant":
        raise CheckFailedError(f"The stream begins with the role {choices[0].delta.role!r} instead of 'assistant'.")
    ends = [choice.finish_reason for choice in choices if choice.finish_reason]
    if len(ends) != 1 or choices[-1].finish_reason is None:
        raise CheckFailedError(f"The stream ends with {ends} instead of one reason, in its last piece.")
    _expect_end(target, text, ends[0], chunks[-1].usage)
    return f"{text!r}, and the same in {len(pieces)} pieces; {ends[0]}, {_counts(whole.usage)}"


def check_completion(target: Target) -> str:
    """A prompt is completed."""
    with _client(target) as client:
        answer = client.completions.create(
            model=target.alias,
            prompt=target.prompt,
            max_tokens=STEPS,
            temperature=0,
            extra_body={"cache_prompt": False},
        )
    choice = answer.choices[0]
    _expect_end(target, choice.text, choice.finish_reason, answer.usage)
    return f"{choice.text!r}; {choice.finish_reason}, {_counts(answer.usage)}"


def check_embeddings(target: Target) -> str:
    """An embedding is returned in base64, the client's default encoding."""
    try:
        with _client(target) as client:
            embedding = client.embeddings.create(model=target.alias, input=target.prompt).data[0].embedding
    except CheckFailedError as error:
        cause = error.__cause__
        if isinstance(cause, openai.APIStatusError) and cause.status_code == NOT_IMPLEMENTED and not target.ours:
            raise CheckSkippedError("the server was started without --embeddings") from error
        raise
    return judge_embedding(target.answer, embedding)


CHECKS: Mapping[Check, Callable[[Target], str]] = {
    Check.CLIENT_MODELS: check_models,
    Check.CLIENT_CHAT: check_chat,
    Check.CLIENT_COMPLETION: check_completion,
    Check.CLIENT_EMBEDDINGS: check_embeddings,
}
"""Every check with OpenAI's client; the last needs a server with --embeddings."""


def turns(prompt: str) -> list[ChatCompletionMessageParam]:
    """Splits the prompt into three turns of a chat, which the known-answer models' template joins again."""
    third = len(prompt) // 3
    return [
        {"role": "user", "content": prompt[:third]},
        {"role": "assistant", "content": prompt[third : 2 * third]},
        {"role": "user", "content": prompt[2 * third :]},
    ]


@contextlib.contextmanager
def _client(target: Target) -> Iterator[openai.OpenAI]:
    """Yields a client that does not retry, and turns its errors into failed checks."""
    try:
        with openai.OpenAI(
            base_url=f"{target.url}/v1",
            api_key=target.key or "none",  # required by the client, also where the server needs none
            timeout=target.patience,
            max_retries=0,
            http_client=openai.DefaultHttpxClient(transport=_Transport(target.patience)),
        ) as client:
            yield client
    except openai.OpenAIError as error:
        raise CheckFailedError(f"OpenAI's client ends with {type(error).__name__}: {error}") from error


class _Transport(httpx2.BaseTransport):
    """Sends the client's requests with the limits of the other checks, which httpx2 does not have.

    Each on a connection of its own: a router (b10454) closes its connections without saying so.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        with (
            http_session.Session() as session,
            http_session.limited(size=ANSWER_BYTES, seconds=WHOLE_ANSWER * self._patience),
        ):
            session.trust_env = False  # a proxy from the environment cannot reach a server on this machine
            try:
                answer = session.request(
                    request.method,
                    str(request.url),
                    headers=dict(request.headers),
                    data=request.read(),
                    timeout=(CONNECT_SECONDS, self._patience),
                    allow_redirects=False,
                )
            except requests.ConnectionError as error:  # not an exceeded limit, which is told as it is
                raise httpx2.TransportError(str(error), request=request) from error
        kind = {"Content-Type": answer.headers.get("Content-Type", "")}
        return httpx2.Response(answer.status_code, headers=kind, content=answer.content)


def _expect_end(target: Target, text: str, reason: str | None, usage: CompletionUsage | None) -> None:
    if usage is None:
        raise CheckFailedError("The answer does not say how many tokens were used.")
    if usage.total_tokens != usage.prompt_tokens + usage.completion_tokens or usage.completion_tokens > STEPS:
        raise CheckFailedError(f"The tokens used do not add up: {_counts(usage)}.")
    if reason not in {"length", "stop"}:
        raise CheckFailedError(f"The answer ends for the reason {reason!r}.")
    if target.answer is None:
        return
    if not text.startswith(demanded(target.answer)):
        raise CheckFailedError(f"The answer is {text!r} where {target.answer.text!r} is right.")
    if (reason, usage.prompt_tokens, usage.completion_tokens) != ("length", len(target.answer.prompt_tokens), STEPS):
        raise CheckFailedError(f"The answer ends for the reason {reason!r} after {_counts(usage)}.")


def _counts(usage: CompletionUsage | None) -> str:
    return f"{usage.prompt_tokens} + {usage.completion_tokens} tokens" if usage else "number of tokens unknown"
