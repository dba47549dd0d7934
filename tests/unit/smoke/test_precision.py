"""What `precision` makes of a server's answers; tests/smoke/test_sensitivity.py asks a real one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from base_images.smoke import model, precision, reference
from base_images.smoke.checks_http import CheckFailedError, CheckSkippedError, Target
from base_images.smoke.model import TensorType
from tests.support.servers import Handler, serving

ANSWER = model.known_answer(TensorType.Q8_0)
WEIGHTS = model.dequantise(model.draw_tensors(TensorType.Q8_0))
PROMPTS = 2


@contextmanager
def answering(error: np.ndarray[Any, Any], *, chosen: int | None = None) -> Iterator[Target]:
    """Yields a server that answers with the reference's logits plus `error`, and always chooses one token if given."""

    class Answers(Handler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answers = []
            for index, prompt in enumerate(body["prompt"]):
                tokens, steps = list(prompt), []
                for _ in range(body["n_predict"]):
                    row = reference.next_log_probabilities(WEIGHTS, model.ARCHITECTURE, tokens)[-1] + error
                    token = int(row[:-1].argmax()) if chosen is None else chosen
                    top = [
                        {"id": number, "logprob": value if np.isfinite(value) else None}
                        for number, value in enumerate(row.tolist())
                    ]
                    steps.append({"id": token, "top_logprobs": top})
                    tokens.append(token)
                answers.append({"index": index, "completion_probabilities": steps})
            self.answer(200, json.dumps(answers).encode(), Content_Type="application/json")

    with serving(Answers) as address:
        yield Target(url=f"http://{address}", alias="m", answer=ANSWER)


def noise(rms: float) -> np.ndarray[Any, Any]:
    row = np.random.default_rng(0).standard_normal(len(model.TOKENS))
    row -= row.mean()
    return np.asarray(rms * row / np.sqrt((row * row).mean()))


def test_the_differences_are_measured() -> None:
    with answering(noise(0.02)) as target:
        seen = precision.measure(target, PROMPTS)
        said = precision.check_precision(target, PROMPTS)
    assert seen.logits == pytest.approx(0.02)
    assert (seen.n, seen.steps) == (PROMPTS * model.STEPS * precision.TOP, PROMPTS * model.STEPS)
    assert seen.mean < seen.rms < seen.p99 <= seen.largest
    assert said.startswith("3,072 logits differ from the reference by 0.02000 nats (RMS; ")


def test_a_common_part_of_all_logits_does_not_count() -> None:
    with answering(np.full(len(model.TOKENS), 1.0)) as target:
        assert precision.measure(target, PROMPTS).logits == pytest.approx(0, abs=1e-9)


def test_many_small_differences_and_one_large_one_fail() -> None:
    one = np.zeros(len(model.TOKENS))
    one[3] = 1.0
    for error, reason in ((noise(0.08), r"0\.08000 nats \(RMS\), and 0\.0"), (one, r"up to 0\.9896 nats, and 0\.8")):
        with answering(error) as target, pytest.raises(CheckFailedError, match=reason):
            precision.check_precision(target, PROMPTS)


def test_another_token_than_the_most_probable_fails() -> None:
    with (
        answering(noise(0.0), chosen=3) as target,
        pytest.raises(CheckFailedError, match="it chooses another token where the right one leads by"),
    ):
        precision.check_precision(target, PROMPTS)


def test_a_log_probability_that_is_not_a_number_fails() -> None:
    error = np.zeros(len(model.TOKENS))
    error[5] = np.nan
    with (
        answering(error) as target,
        pytest.raises(CheckFailedError, match="lacks a token's log-probability, or it is not"),
    ):
        precision.check_precision(target, PROMPTS)


def test_a_model_without_a_known_answer_is_not_judged() -> None:
    with pytest.raises(CheckSkippedError, match="the right answers of its model are not known"):
        precision.check_precision(dataclasses.replace(Target(url="", alias="m", answer=None)))
