"""BodhiApp's arguments for every variant, on the cpu image: which arguments the server accepts is independent of it."""

from __future__ import annotations

import json
import re
from functools import partial

import pytest

from base_images import variants
from base_images.adapters.engine import Engine, Image
from base_images.contract import facts as image_facts
from base_images.recipes import consumer
from base_images.smoke import containers
from base_images.smoke.model import TensorType
from base_images.smoke.report import Status
from tests.support import bodhi, commands

ACCELERATORS = [variant for variant in variants.VARIANTS if variant.device]


def in_place_of(variant: variants.Variant, cpu_image: Image) -> str:
    """Returns a Dockerfile of an image with the CPU's server in the directory of a variant."""
    link = f'ln -sf "$PWD/{variant.name}/llama-server" /usr/local/bin/llama-server'
    return (
        f"FROM {cpu_image.tags[0]}\nUSER root\nRUN cd /app/bin/* && cp -al cpu {variant.name} && {link}\nUSER llama\n"
        f"LABEL bodhi.variant={variant.name}\n"
    )


@pytest.mark.parametrize("variant", ACCELERATORS, ids=lambda variant: variant.name)
def test_answers_are_right_with_each_variant_s_arguments(
    engine: Engine, cpu_image: Image, variant: variants.Variant
) -> None:
    known = consumer.load()
    with bodhi.built(engine, in_place_of(variant, cpu_image)) as image:
        answers = image_facts.ask_arguments(engine, image, variant, known)
        judged = consumer.judge(answers, known.refusals_of(variant.name))
        assert judged.findings == ()
        assert len(judged.known) == len(known.refusals_of(variant.name))
        report = containers.smoke(engine, image.id, variant, tensor_types=[TensorType.Q8_0])
    failed = {(row.server, row.check): row.seen for row in report.rows if row.status is Status.FAIL}
    assert failed == {}
    given = {server.name: server.arguments for server in report.servers}
    for directory in variant.directories:
        name = "as BodhiApp, Q8_0" if directory == variant.name else f"as BodhiApp, from {directory}/"
        assert given[name].endswith(" ".join(known.working(variant.name, directory)))


@pytest.mark.parametrize("name", ["musa", "intel", "cann"])
def test_bodhi_s_own_image_starts_unchanged(engine: Engine, cpu_image: Image, name: str) -> None:
    """Only variants for which the server accepts every argument: no replacement, no fallback."""
    with (
        bodhi.built(engine, in_place_of(variants.find(name), cpu_image)) as image,
        bodhi.tagged(engine, image) as tagged,
        bodhi.child(engine, tagged, name) as made,
    ):
        said = bodhi.served(engine, made)
    assert said.count("starting /app/bin/") == 1
    assert f"/{name}/llama-server" in said


def test_check_consumer_asks_an_image(engine: Engine, cpu_image: Image) -> None:
    check = partial(commands.invoke, "check-consumer", "--image")
    fine = check(cpu_image.id, "--json")
    assert (fine.returncode, json.loads(fine.stdout)["ok"]) == (0, True)
    with bodhi.built(engine, in_place_of(variants.find("rocm"), cpu_image)) as image:
        known = check(image.id)
    assert known.returncode == 0, known.stdout + known.stderr
    assert re.search(r"(?s)known: rocm/llama-server refuses\s+--hipblas", known.stdout)
    unknown = check("llama-cpp-cpu:no-such-tag")
    assert unknown.returncode == 4
    assert "Traceback" not in unknown.stderr


def test_check_consumer_asks_an_image_with_the_arguments_of_a_checkout(
    cpu_image: Image, tmp_path_factory: pytest.TempPathFactory
) -> None:
    checkout = bodhi.checkout(tmp_path_factory.mktemp("BodhiApp") / "x")
    recipe = checkout / "devops" / "cpu.Dockerfile"
    recipe.write_text(recipe.read_text().replace("--threads 4", "--threads 4 --new-argument"))
    done = commands.invoke("check-consumer", "--source", str(checkout), "--image", cpu_image.id)
    assert done.returncode == 1
    said = " ".join(done.stdout.split())
    assert "cpu/llama-server refuses --new-argument, which BodhiApp passes: error: invalid argument" in said
    assert "BODHI_LLAMACPP_ARGS_CPU" in said
