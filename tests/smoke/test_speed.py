"""The speed of a real server; how fast it is, nobody promises."""

from __future__ import annotations

from base_images.adapters.engine import Engine, Image
from base_images.smoke import launch, model, speed
from base_images.smoke.model import TensorType
from base_images.smoke.speed import Measured


def test_a_server_on_the_cpu(engine: Engine, cpu_image: Image) -> None:
    way = launch.quick_start(cpu_image.id, "model")
    with launch.prepared(engine, way, model.known_answer(TensorType.Q8_0).gguf) as container:
        seconds = launch.start(container, way.port)
        rates = speed.measure(launch.url(container, way.port))
        container.signal("SIGTERM")
        container.wait(10)
        memory = speed.device_memory(container.logs(), "Vulkan")
    assert rates.prompt > rates.generated > 1
    assert memory is None
    prompt, generation, load, _ = speed.speeds(None, Measured(rates=rates, load_seconds=seconds, memory=memory))
    assert (prompt.cpu, generation.cpu, load.cpu) == (rates.prompt, rates.generated, seconds)
