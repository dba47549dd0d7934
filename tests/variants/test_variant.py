"""An accelerator's image on a machine without the device: contract, fall-back to the CPU, and child images."""

from __future__ import annotations

import re

import pytest
from packaging.version import Version as PackageVersion

from base_images import settings, variants, versions
from base_images.adapters.engine import Engine, Image
from base_images.contract import judge
from base_images.contract import layers as archive
from base_images.contract.layers import Kind
from base_images.contract.verdict import Status
from base_images.image import loaded_backends
from base_images.labels import TOOLKIT_PREFIX, Label
from base_images.recipes import consumer
from base_images.smoke import checks_http, checks_server, containers, model
from base_images.smoke import server as servers
from base_images.smoke.checks_http import Target
from base_images.smoke.model import TensorType
from base_images.variants import Variant
from tests.support import bodhi, documents


def home(image: Image, directory: str) -> str:
    platform = variants.Platform.of_architecture(image.architecture)
    assert platform
    return f"/app/bin/{platform.triple}/{directory}"


def test_the_contract(engine: Engine, variant: Variant, image: Image) -> None:
    report = judge.check(engine, image.id, variant)
    assert [(row.number, row.findings) for row in report.rows if row.status is Status.FAIL] == []


def test_the_toolkit_is_in_the_labels(variant: Variant, image: Image) -> None:
    toolkit = {name: value for name, value in image.labels.items() if name.startswith(TOOLKIT_PREFIX)}
    assert set(toolkit) == {f"{TOOLKIT_PREFIX}{name}" for name in variant.toolkit}
    assert all(toolkit.values())


def test_the_cpu_directory_has_hard_links_only(engine: Engine, variant: Variant, image: Image) -> None:
    if variant.static_backends:
        pytest.skip("its cpu/ is a build of its own")
    layers = [archive.merge([layer]) for layer in archive.read(engine.save(image.id), diff_ids=image.diff_ids, keep=())]
    own, cpu = (home(image, directory) for directory in variant.directories)
    [layer] = [layer for layer in layers if f"{own}/llama-server" in layer]
    files = {path: entry for path, entry in layer.items() if path.startswith(f"{cpu}/") and entry.kind is Kind.FILE}
    assert files
    for path, entry in files.items():
        assert entry.inode == layer[path.replace(cpu, own, 1)].inode, path
    only_own = {path.rpartition("/")[2] for path in layer if path.startswith(f"{own}/")} - {
        path.rpartition("/")[2] for path in layer if path.startswith(f"{cpu}/")
    }
    assert only_own == {variant.backend}


def test_both_directories_answer_on_the_cpu(engine: Engine, variant: Variant, image: Image) -> None:
    report = containers.smoke(engine, image.id, variant, tensor_types=[TensorType.Q8_0])
    assert report.ok, [(row.server, row.check, row.seen) for row in report.rows if row.status != "pass"]
    said = {row.server: row.seen for row in report.rows if row.check == "backend"}
    assert "THE CPU GAVE THE ANSWERS" in said["as BodhiApp, Q8_0"]
    assert said["as BodhiApp, from cpu/"].startswith("loaded libggml-cpu-")


def backends_of(engine: Engine, image: Image, directory: str) -> tuple[str, ...]:
    """Requests the known answer from the server in a directory, as BodhiApp does; returns the loaded backends."""
    answer = model.known_answer(TensorType.Q8_0)
    way = containers.as_bodhi(image.id, "model", home(image, directory))
    with containers.prepared(engine, way, answer.gguf) as container:
        servers.start(container, way.port)
        checks_http.check_completion(Target(url=servers.url(container, way.port), alias=way.alias, answer=answer))
        maps = container.maps()
    checks_server.check_backend(maps, "", home(image, directory))
    return loaded_backends(maps)


def test_a_child_of_two_variants_starts_both(engine: Engine, variant: Variant, image: Image, cpu_image: Image) -> None:
    dockerfile = f"FROM {image.tags[0]}\nCOPY --from={cpu_image.tags[0]} /app/bin/ /app/bin/\n"
    with bodhi.built(engine, dockerfile) as made:
        assert made.user == image.user
        for directory in variant.directories:
            # Vulkan's backend loads without a device; the others need their driver.
            loaded = f"{home(made, 'vulkan')}/libggml-vulkan.so" in backends_of(engine, made, directory)
            assert loaded == (directory == "vulkan")


def test_the_documented_child_of_two_accelerators_starts_all_servers(
    engine: Engine, variant: Variant, image: Image
) -> None:
    vulkan = versions.local_reference("vulkan")
    if variant.name == "vulkan" or not engine.has_image(vulkan):
        pytest.skip("needs the images of vulkan and of another accelerator")
    if PackageVersion(engine.image(vulkan).labels[Label.GLIBC]) < PackageVersion(image.labels[Label.GLIBC]):
        pytest.skip("the document starts from the image with the newest glibc, which is not vulkan's here")
    [dockerfile] = re.findall(r"^```dockerfile\n(FROM \S+vulkan\n.*?)^```$", documents.TEXT, re.MULTILINE | re.DOTALL)
    registry = settings.load().registry
    dockerfile = dockerfile.replace(f"{registry}:latest-vulkan", vulkan).replace(
        f"{registry}:latest-cuda", image.tags[0]
    )
    with bodhi.built(engine, dockerfile.replace("/cuda/", f"/{variant.name}/")) as made:
        found = {directory: backends_of(engine, made, directory) for directory in (*variant.directories, "vulkan")}
        assert [name for name, backends in found.items() if "libggml-vulkan.so" in " ".join(backends)] == ["vulkan"]


def test_bodhi_on_the_image_answers(engine: Engine, variant: Variant, image: Image) -> None:
    """A recorded refusal of BodhiApp's arguments makes it fall back to cpu/."""
    refused = consumer.load().refusals_of(variant.name)
    with bodhi.child(engine, image, variant.name) as made:
        said = bodhi.served(engine, made)
        assert said.count("starting /app/bin/") == (2 if refused else 1), said
        for refusal in refused:
            assert refusal.argument in said
            assert f"the server of {variant.name} ended with 1\n" in said
            arguments = consumer.load().working(variant.name, variant.name)
            working = bodhi.served(engine, made, {f"BODHI_LLAMACPP_ARGS_{variant.name.upper()}": " ".join(arguments)})
            assert working.count("starting /app/bin/") == 1, working
