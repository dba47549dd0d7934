"""The longer run on real servers finds wrong results, and tells them from a device that is not used.

Without a device both servers are the CPU's; what it sees on one is shown on lavapipe, where there is a vulkan image.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from base_images import variants
from base_images.adapters.container import Container
from base_images.adapters.engine import Engine, Image
from base_images.smoke import agreement, checks_server, containers, device, model, tolerances
from base_images.smoke import server as servers
from base_images.smoke.agreement import PAIRS, Pair
from base_images.smoke.checks_http import CheckFailedError
from base_images.smoke.device import Granted
from base_images.smoke.model import TensorType
from base_images.smoke.tolerances import Limits
from base_images.smoke.weights import Tensor

BIN = "/app/bin/x86_64-unknown-linux-gnu"
LAVAPIPE = device.in_software(variants.find("vulkan"))
ON = Pair(tensor_type=TensorType.F16, flash_attention=True)


def of_cpus(tensor_type: TensorType) -> Limits:
    """Returns the limits of two CPUs."""
    return tolerances.between(tolerances.of(tensor_type), tolerances.of(tensor_type))


TOLERANCE = of_cpus(TensorType.F16)
GGUF = model.known_answer(TensorType.F16).gguf


@contextlib.contextmanager
def server(
    engine: Engine,
    image: Image,
    pair: Pair,
    *,
    gguf: bytes = GGUF,
    given: tuple[Granted, str] | None = None,
    extra: tuple[str, ...] = (),
) -> Iterator[tuple[Container, str]]:
    """Yields a server of the pair and its URL: from `cpu/`, or on a given device."""
    way = containers.quick_start(image.id, "model")
    entrypoint = way.container.entrypoint if given else (f"{BIN}/cpu/llama-server",)
    way = dataclasses.replace(way, container=dataclasses.replace(way.container, entrypoint=entrypoint))
    way = containers.with_arguments(way, pair.arguments, None)
    if given:
        way = containers.on_device(way, *given)
    way = containers.with_arguments(way, extra, None)
    with containers.prepared(engine, way, gguf) as container:
        servers.start(container, way.port, timeout=servers.DEVICE_TIMEOUT_SECONDS)
        yield container, servers.url(container, way.port)


def altered(change: Callable[[dict[str, Tensor]], None]) -> bytes:
    """Returns the F16 model with `change` applied to its tensors' values."""
    tensors = model.draw_tensors(TensorType.F16)
    change(tensors)
    return model.to_gguf(tensors)


def one_weight(tensors: dict[str, Tensor], value: float = 4.0) -> None:
    """Makes one of a million weights large, like a flipped bit."""
    tensors["blk.1.ffn_down"].stored[7, 7] = np.float16(value)


def two_percent(tensors: dict[str, Tensor]) -> None:
    """Makes every weight of one matrix 2% too large, like a kernel with a wrong scale."""
    name = "blk.0.attn_v"
    larger = (tensors[name].stored.astype(np.float32) * 1.02).astype(np.float16)
    tensors[name] = dataclasses.replace(tensors[name], stored=larger)


def not_a_number(tensors: dict[str, Tensor]) -> None:
    one_weight(tensors, float("nan"))


# --- On the CPU. ---


@pytest.fixture(scope="module")
def cpu(engine: Engine, cpu_image: Image) -> Iterator[tuple[Container, str]]:
    with server(engine, cpu_image, ON) as started:
        yield started


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_a_server_agrees_with_itself_to_the_last_bit(engine: Engine, cpu_image: Image, pair: Pair) -> None:
    gguf = model.known_answer(pair.tensor_type).gguf
    with server(engine, cpu_image, pair, gguf=gguf) as (container, url):
        said = agreement.check_agreement(url, url, of_cpus(pair.tensor_type))
        assert "differ by 0.0000 nats (RMS; " in said
        assert said.endswith("0 near ties decided differently; no bit differs, as if the same code had computed both")
        log = container.logs()
    agreement.check_flash_attention(log, wanted=pair.flash_attention)
    with pytest.raises(CheckFailedError, match="Flash attention is o"):
        agreement.check_flash_attention(log, wanted=not pair.flash_attention)
    # Several sequences, and a prompt that takes several batches.
    assert f"n_slots = {len(agreement.PROMPT_LENGTHS)}" in log
    assert f"n_batch               = {agreement.BATCH}\n" in log
    assert max(agreement.PROMPT_LENGTHS) > 2 * agreement.BATCH


@pytest.mark.parametrize("tensor_type", agreement.TYPES)
def test_other_kernels_are_within_the_tolerance(engine: Engine, cpu_image: Image, tensor_type: TensorType) -> None:
    on, off = (pair for pair in PAIRS if pair.tensor_type is tensor_type)
    gguf = model.known_answer(tensor_type).gguf
    with server(engine, cpu_image, on, gguf=gguf) as (_, one), server(engine, cpu_image, off, gguf=gguf) as (_, other):
        said = agreement.check_agreement(one, other, of_cpus(tensor_type))
    assert "no bit differs" not in said


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (one_weight, "The device computes something else: prompt 1, position 3: "),
        (two_percent, "The device computes something else: "),
        (not_a_number, "Token 1 of the device's answer has a log-probability that is not a number"),
    ],
)
def test_a_damaged_model_fails(
    engine: Engine,
    cpu_image: Image,
    cpu: tuple[Container, str],
    change: Callable[[dict[str, Tensor]], None],
    reason: str,
) -> None:
    with (
        server(engine, cpu_image, ON, gguf=altered(change)) as (_, url),
        pytest.raises(CheckFailedError, match=f"^{reason}"),
    ):
        agreement.check_agreement(url, cpu[1], TOLERANCE)


# Without F32: F16 has the same weights, rounded by less than the tolerance.
@pytest.mark.parametrize("other", [TensorType.Q8_0, TensorType.Q4_0, TensorType.Q4_K])
def test_the_model_of_another_type_fails(
    engine: Engine, cpu_image: Image, cpu: tuple[Container, str], other: TensorType
) -> None:
    gguf = model.known_answer(other).gguf
    with (
        server(engine, cpu_image, ON, gguf=gguf) as (_, url),
        pytest.raises(CheckFailedError, match=r"^The device computes something else: "),
    ):
        agreement.check_agreement(url, cpu[1], TOLERANCE)


# --- On lavapipe. ---


@pytest.fixture(scope="module")
def vulkan_cpu(engine: Engine, vulkan_image: Image) -> Iterator[str]:
    """Yields the URL of a server from the vulkan image's own `cpu/`."""
    with server(engine, vulkan_image, ON) as (_, url):
        yield url


@pytest.mark.lavapipe
def test_a_right_device_agrees(engine: Engine, vulkan_image: Image, vulkan_cpu: str, cache: str) -> None:
    with server(engine, vulkan_image, ON, given=(LAVAPIPE, cache)) as (container, url):
        said = agreement.check_agreement(url, vulkan_cpu, TOLERANCE, patience=servers.DEVICE_TIMEOUT_SECONDS)
        checks_server.check_offloaded(container.logs())
        agreement.check_flash_attention(container.logs(), wanted=True)
    assert "no bit differs" not in said


@pytest.mark.lavapipe
def test_a_wrong_device_fails(engine: Engine, vulkan_image: Image, vulkan_cpu: str, cache: str) -> None:
    with server(engine, vulkan_image, ON, gguf=altered(one_weight), given=(LAVAPIPE, cache)) as (container, url):
        with pytest.raises(CheckFailedError, match=r"^The device computes something else: "):
            agreement.check_agreement(url, vulkan_cpu, TOLERANCE, patience=servers.DEVICE_TIMEOUT_SECONDS)
        checks_server.check_offloaded(container.logs())


@pytest.mark.lavapipe
@pytest.mark.parametrize(
    ("given", "extra", "reason"),
    [
        (LAVAPIPE, ("--n-gpu-layers", "0"), "Only 0 of 3 layers are on the device"),
        (dataclasses.replace(LAVAPIPE, environment={}), (), "any layer is on a device"),
    ],
    ids=["no layers", "hidden"],
)
def test_an_unused_device_is_found_by_the_log(
    engine: Engine,
    vulkan_image: Image,
    vulkan_cpu: str,
    cache: str,
    given: Granted,
    extra: tuple[str, ...],
    reason: str,
) -> None:
    with server(engine, vulkan_image, ON, given=(given, cache), extra=extra) as (container, url):
        agreement.check_agreement(url, vulkan_cpu, TOLERANCE, patience=servers.DEVICE_TIMEOUT_SECONDS)
        with pytest.raises(CheckFailedError, match=reason):
            checks_server.check_offloaded(container.logs())
