"""BodhiApp's images on the cpu image: they answer, fall back, and use volumes of older installations."""

from __future__ import annotations

from base_images.adapters.engine import Engine, Image
from tests.support import bodhi


def test_bodhi_on_the_cpu_image_answers(engine: Engine, cpu_image: Image) -> None:
    with bodhi.child(engine, cpu_image, "cpu") as image:
        said = bodhi.served(engine, image)
    assert "starting /app/bin/" in said
    assert " --jinja --no-webui --threads 4 --no-mmap\n" in said


def test_an_argument_that_the_server_refuses_is_reported_at_once(engine: Engine, cpu_image: Image) -> None:
    """BodhiApp itself waits for five minutes; the stand-in reports why a test fails."""
    with bodhi.child(engine, cpu_image, "cpu") as image:
        said = bodhi.fails(engine, image, {"BODHI_LLAMACPP_ARGS_CPU": "--no-such-argument"})
    assert "error: invalid argument: --no-such-argument\n" in said
    assert "the server of cpu ended with 1\n" in said
    assert "no server started\n" in said


def test_a_gpu_child_falls_back_to_the_cpu_with_its_arguments(engine: Engine, cpu_image: Image) -> None:
    """As in an accelerator's image whose server cannot start; here that server is missing."""
    with bodhi.child(engine, cpu_image, "cpu") as image:
        said = bodhi.served(engine, image, {"BODHI_EXEC_VARIANTS": "cuda,cpu"})
    assert "the server of cuda ended with 127\n" in said
    assert "/cpu/llama-server --alias bodhi " in said


def with_user(base: Image, *commands: str) -> str:
    """Returns a Dockerfile that replaces our user `llama` and gives it /data."""
    steps = "".join(
        f"RUN {command}\n"
        for command in ("userdel llama", *commands, "mkdir -p /data", "chown llama /data", "chmod 755 /data")
    )
    return f"FROM {base.tags[0]}\nUSER root\n{steps}USER llama\n"


def test_a_volume_of_the_predecessor_is_writable(engine: Engine, cpu_image: Image) -> None:
    """The predecessor's recipes created the user by these commands, and its files belong to the uid that they gave."""
    predecessor = with_user(cpu_image, "groupadd -r llama", "useradd -r -g llama -d /app -s /bin/bash llama")
    with engine.volume("smoke") as volume, bodhi.built(engine, predecessor) as old:
        made = bodhi.run(engine, old, volume, "mkdir bodhi_home hf_home && echo before > bodhi_home/starts && id -u")
        assert made.split() == [str(bodhi.DATA.volume_owner)]
        with bodhi.child(engine, cpu_image, "cpu") as image:
            bodhi.served(engine, image, volume=volume)
            assert bodhi.run(engine, image, volume, "cat bodhi_home/starts") == "before\ncpu\n"


def test_a_volume_of_another_uid_is_not_writable(engine: Engine, cpu_image: Image) -> None:
    """What images with another uid would mean for every existing installation."""
    other = with_user(cpu_image, "useradd --uid 10001 llama")
    with engine.volume("smoke") as volume, bodhi.built(engine, other) as old:
        bodhi.run(engine, old, volume, "mkdir bodhi_home hf_home && echo before > bodhi_home/starts")
        with bodhi.child(engine, cpu_image, "cpu") as image:
            assert "/data/bodhi_home/starts: Permission denied" in bodhi.fails(engine, image, volume=volume)
