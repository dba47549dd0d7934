"""The smoke test of a llama-server that is already running, by its URL alone."""

from __future__ import annotations

import dataclasses
import datetime as dt
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import requests

from base_images.adapters import http_session
from base_images.errors import UsageError, scrub
from base_images.smoke import checks_http, model, tolerances
from base_images.smoke import server as servers
from base_images.smoke.checks_http import CheckSkippedError, Target, perform
from base_images.smoke.report import Check, CheckResult, Device, ServerReport, SmokeReport, Status
from base_images.smoke.runner import CHECKS, DEVICE_CHECKS
from base_images.smoke.tolerances import Kind
from base_images.variants import Variant

WRITE_MODEL = "`invoke known-answer-model --type Q8_0 --output model.gguf`"


KEY_VARIABLE = "BASE_IMAGES_API_KEY"


def api_key(file: Path | None, environment: Mapping[str, str]) -> str:
    """Returns the API key in a file as for llama-server's `--api-key-file`, else the environment's; empty for none.

    Raises:
        UsageError: the file cannot be read, or there is no key in it that can be sent.
    """
    where = str(file or KEY_VARIABLE)
    try:
        text = file.read_text(encoding="utf-8") if file else environment.get(KEY_VARIABLE, "")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The API key cannot be read from {where}: name a text file with it.") from error
    key = next((line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
    # An error about such a header would show it.
    if (file and not key) or not (key.isascii() and key.isprintable()):
        raise UsageError(f"{where} has no API key: put it there on one line, in printable ASCII.")
    return key


def smoke_url(url: str, variant: Variant, *, model_name: str = "", key: str = "") -> SmokeReport:
    """Checks a running server and returns the report; checks that are not possible are skipped, with the reason.

    Args:
        url: of the server, such as `http://127.0.0.1:8080`.
        variant: of the server; one with an accelerator has larger tolerances.
        model_name: of a server with several models, see `checks_http.find_model`.
        key: the server's API key, which the report does not show; empty for none.

    Raises:
        UsageError: `url` is not a URL.
    """
    try:
        http_session.origin(url)
    except requests.exceptions.InvalidURL as error:
        raise UsageError(f"{url!r} is not a URL of a server: write it as http://127.0.0.1:8080.") from error
    url = url.rstrip("/")
    shown = scrub(url)
    started = dt.datetime.now(dt.UTC)
    clock = time.monotonic()
    server = ServerReport(
        name=f"at {shown}",
        arguments="(somebody else's)",
        checks=tuple(_without(key, result) for result in _check(url, variant, model_name, key)),
        log="",
        seconds=time.monotonic() - clock,
    )
    return SmokeReport(
        image=shown,
        variant=variant.name,
        device=Device.UNKNOWN,
        started=started.isoformat(timespec="seconds"),
        seconds=server.seconds,
        servers=(server,),
    )


def _check(url: str, variant: Variant, model_name: str, key: str) -> list[CheckResult]:
    target = Target(url=url, alias="", answer=None, ours=False, patience=servers.DEVICE_TIMEOUT_SECONDS, key=key)
    health = perform(Check.HEALTH, lambda: checks_http.check_health(target))
    if health.status is not Status.PASS:
        return [health]

    def known_answer() -> str:
        nonlocal target
        alias, tensor_type = checks_http.find_model(target, model_name)
        target = dataclasses.replace(target, alias=alias)
        if tensor_type is None:
            raise CheckSkippedError(
                f"the right answer of {alias} is not known: answers are judged only for the model that {WRITE_MODEL} "
                "writes"
            )
        answer = model.known_answer(tensor_type)
        limits = tolerances.of(tensor_type, kind=Kind.GPU if variant.device else Kind.CPU)
        target = dataclasses.replace(target, answer=model.within(answer, limits))
        return f"the model is the known-answer model of type {tensor_type}: its answers are judged"

    found = perform(Check.KNOWN_ANSWER, known_answer)
    if not target.alias:
        return [health, found]
    return [
        health,
        found,
        *(perform(name, partial(check, target)) for name, check in CHECKS.items() if name is not Check.HEALTH),
        *(_skip(name, "shown only by the server's log, which is not here") for name in (Check.BACKEND, *DEVICE_CHECKS)),
        _skip(Check.HEALTHCHECK, "the server's container is not here"),
        _skip(Check.SIGTERM, "the server is somebody's: it is not ended"),
    ]


def _without(key: str, result: CheckResult) -> CheckResult:
    """Returns the result without the key, which a server may repeat in its answer."""
    if not key:
        return result
    return dataclasses.replace(result, seen=result.seen.replace(key, "***"), detail=result.detail.replace(key, "***"))


def _skip(name: Check, why: str) -> CheckResult:
    return CheckResult(name=name, status=Status.SKIP, seen=why, seconds=0)
