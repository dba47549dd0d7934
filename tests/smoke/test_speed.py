"""The speed of a real server is measured, and not judged."""

from __future__ import annotations

import time
from pathlib import Path

from base_images.adapters.engine import Engine, Image
from base_images.smoke import containers, model, speed
from base_images.smoke import server as servers
from base_images.smoke.model import TensorType
from base_images.smoke.speed import Measured
from tests.unit.smoke.test_speed import SMALL


def test_the_speed_of_a_server_on_the_cpu(engine: Engine, cpu_image: Image) -> None:
    way = containers.quick_start(cpu_image.id, "model")
    with containers.prepared(engine, way, model.known_answer(TensorType.Q8_0).gguf) as container:
        seconds = servers.start(container, way.port)
        began = time.monotonic()
        rates = speed.measure(servers.url(container, way.port))
        measured = time.monotonic() - began
        container.signal("SIGTERM")
        container.wait(300)
        memory = speed.device_memory(container.logs(), "Vulkan")
    # However fast the machine is: one answer, by the server's clock, takes no longer than all of them together.
    assert 0 < speed.PROMPT_TOKENS / rates.prompt + speed.GENERATED_TOKENS / rates.generated < measured
    assert memory is None
    prompt, generation, load, _ = speed.speeds(None, Measured(rates=rates, load_seconds=seconds, memory=memory))
    assert (prompt.cpu, generation.cpu, load.cpu) == (rates.prompt, rates.generated, seconds)


def test_a_model_written_for_the_speed_is_one_for_the_server(engine: Engine, cpu_image: Image, tmp_path: Path) -> None:
    with speed.written_model(SMALL, [tmp_path]) as path:
        way = containers.with_arguments(containers.quick_start(cpu_image.id, "model"), (), path)
        with containers.prepared(engine, way, b"") as container:
            servers.start(container, way.port)
            rates = speed.measure(servers.url(container, way.port))
            log = container.logs()
    assert rates.prompt > 0
    assert rates.generated > 0
    assert "Q4_K" in log
    norms = (2 * SMALL.architecture.layers + 1) * SMALL.width
    weights = sum(rows * columns for rows, columns in SMALL.matrices.values()) + norms
    assert f"model params          = {weights / 1e6:.2f} M" in log
