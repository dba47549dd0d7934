"""Measures the servers of both images, started by the same arguments: first token, memory, tokens per second."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import requests

from base_images.adapters.container import Container
from base_images.adapters.engine import Engine
from base_images.bench.cases import Metric
from base_images.errors import LaunchError
from base_images.smoke import checks_http, containers, model, server, speed
from base_images.smoke.checks_http import CheckFailedError
from base_images.smoke.model import TensorType
from base_images.smoke.reference import Architecture

STARTS = 5
"""Starts of each side in a round."""

TOKENS = 64
"""Generated for each client."""

PATIENCE = 600.0
"""Seconds for an answer: upstream's server takes long with fewer CPUs than it has threads."""

SHAPE = speed.Shape(
    architecture=Architecture(layers=12, heads=16, kv_heads=8, head_size=64, rope_base=1e6, epsilon=1e-6),
    width=1024,
    feed_forward=3072,
    vocabulary=32_000,
)
"""216 million weights, 122 MB: a size that two cores answer in seconds."""

_ARGUMENTS = ("--parallel", "8", "--ctx-size", "2048")
_POLL_SECONDS = 0.005


@dataclasses.dataclass(frozen=True, kw_only=True)
class Started:
    """A start: the seconds from `docker run` to the first token, and then the bytes of memory of all processes."""

    seconds: float
    memory: int


def start(engine: Engine, image_id: str) -> Started:
    """Starts a server with a small model and returns how long its first token took.

    Raises:
        LaunchError: it ended, or gave no token in time.
    """
    with _server(engine, image_id, model.known_answer(TensorType.Q8_0).gguf) as (container, url, began):
        _first_token(container, url)
        seconds = time.monotonic() - began
        rows = container.execute(("sh", "-c", "cat /proc/[0-9]*/smaps_rollup")).stdout
    return Started(seconds=seconds, memory=memory(rows))


def memory(smaps: str) -> int:
    """Returns the bytes in `/proc/<pid>/smaps_rollup` of several processes, shared pages counted once (Pss)."""
    return sum(int(kilobytes) for kilobytes in re.findall(r"(?m)^Pss: +(\d+) kB$", smaps)) * 1024


def rate(engine: Engine, image_id: str, gguf: bytes, metric: Metric) -> float:
    """Returns the tokens per second that the metric's clients get together, after an answer to warm up.

    Raises:
        LaunchError: the server ended, or gave no token in time.
        CheckFailedError: it refused a request.
    """
    with _server(engine, image_id, gguf, cpus=metric.cpus or None, arguments=_ARGUMENTS) as (container, url, _):
        _first_token(container, url)
        body = {"prompt": speed.TEXT, "n_predict": TOKENS, "temperature": 0, "cache_prompt": False, "ignore_eos": True}

        def ask(_: int) -> int:
            answer = checks_http.post(f"{url}/completion", body, patience=PATIENCE)
            return int(answer["timings"]["predicted_n"])

        with ThreadPoolExecutor(metric.clients) as clients:
            began = time.monotonic()
            tokens = sum(clients.map(ask, range(metric.clients)))
            return tokens / (time.monotonic() - began)


def written_model(shape: speed.Shape = SHAPE) -> bytes:
    """Returns a model of random weights."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.gguf"
        speed.write_model(path, shape)
        return path.read_bytes()


@contextmanager
def _server(
    engine: Engine, image_id: str, gguf: bytes, *, cpus: float | None = None, arguments: tuple[str, ...] = ()
) -> Iterator[tuple[Container, str, float]]:
    """Yields a server that was started, its URL, and when `docker run` would have begun."""
    way = containers.with_arguments(containers.quick_start(image_id, "model"), arguments, None)
    with engine.volume("bench") as volume:
        # The image's own environment and user: what people start.
        spec = dataclasses.replace(
            way.container, environment={}, user=None, cpus=cpus, volumes={volume: containers.MODELS}, resource="bench"
        )
        filler = dataclasses.replace(spec, publish=None)
        with engine.container(filler, files={way.model_path: gguf}):
            pass  # the model's copy into the volume is not part of `docker run`
        began = time.monotonic()
        with engine.container(spec) as container:
            container.start()
            yield container, server.url(container, way.port), began


def _first_token(container: Container, url: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            checks_http.post(f"{url}/completion", {"prompt": speed.TEXT, "n_predict": 1}, patience=PATIENCE)
        except (requests.RequestException, CheckFailedError) as error:
            state = container.state()
            if not state.running or time.monotonic() > deadline:
                raise LaunchError(
                    f"The server gave no token ({error}); it is {state.status}, exit code {state.exit_code}.",
                    detail=server.tail(container.logs()),
                ) from error
            time.sleep(_POLL_SECONDS)
        else:
            return
