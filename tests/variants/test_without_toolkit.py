"""musa, intel and cann without their toolkits: the recipe without the vendor's parts, on Debian's compilers.

All other lines of the recipe run, and the cpu directory, which BodhiApp falls back to, is built and tested. The bases
are the Debian releases nearest to upstream's.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from base_images import progress, settings
from base_images.adapters import buildkit
from base_images.adapters.engine import Engine, Image
from base_images.build import local, source
from base_images.build.inputs import Origin
from base_images.contract import judge
from base_images.contract.verdict import Status
from base_images.roots import Packages, Root
from base_images.smoke import containers
from base_images.smoke.model import TensorType
from base_images.variants import Variant
from tests.support import bodhi, clones

BOOKWORM = Root(suite="bookworm")  # glibc 2.36; upstream's base for musa is Ubuntu 22.04, glibc 2.35
NEAREST = {
    "musa": Packages(build=BOOKWORM, runtime=BOOKWORM),
    "intel": Packages(),
    "cann": Packages(),  # openEuler is in no package mirror
}
RM = r'rm "\$\{directory%/\*\}/cpu/libggml-\w+\.so"'
VENDOR_PARTS = {
    "musa": (
        (r"-DGGML_MUSA=ON", "-DGGML_MUSA=OFF"),
        (RM, "true"),
    ),
    "intel": (
        (
            r"(wget ca-certificates ccache ninja-build) && \\\n(    cd /tmp .*\\\n)(    .*\\\n)+    rm -f .*",
            r"\1 build-essential cmake",
        ),
        (r"-DGGML_SYCL=ON -DCMAKE_C_COMPILER=icx -DCMAKE_CXX_COMPILER=icpx", "-DGGML_SYCL=OFF"),
        (RM, "true"),
        (r"(  && wget .*\\\n)+  && apt-get install .* \./\*\.deb \\\n", ""),
        (r"(/payload/app/bin/\*/intel) \\\n(.*\\\n)+.*", r"\1"),
    ),
    "cann": (
        (
            r"yum install -y gcc g\+\+ cmake make git openssl-devel",
            "apt-get update && apt-get install -y gcc g++ cmake make git libssl-dev",
        ),
        (r"yum install -y libgomp (.*) shadow-utils", r"apt-get update && apt-get install -y libgomp1 \1"),
        (r"yum clean all", "apt-get clean"),
        (r"rm -rf /var/cache/yum", "rm -rf /var/lib/apt/lists /var/cache/apt"),
        (r"\. /usr/local/Ascend/ascend-toolkit/set_env\.sh --force", "true"),
        (r"-DGGML_CANN=ON", "-DGGML_CANN=OFF"),
    ),
}


@pytest.fixture(scope="module")
def root(variant: Variant, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose recipe lacks only the vendor's parts."""
    if variant.name not in NEAREST:
        pytest.skip("its toolkit can be had")
    made = tmp_path_factory.mktemp("checkout")
    shutil.copytree(settings.ROOT / "dockerfiles", made / "dockerfiles")
    shutil.copy(settings.ROOT / ".dockerignore", made)
    recipe = made / variant.dockerfile
    text = recipe.read_text(encoding="utf-8")
    for pattern, replacement in VENDOR_PARTS[variant.name]:
        text, count = re.subn(pattern, replacement, text)
        assert count, pattern
    recipe.write_text(text, encoding="utf-8")
    clones.commit_all(made)
    return made


@pytest.fixture(scope="module")
def image(engine: Engine, variant: Variant, root: Path) -> Iterator[Image]:
    """The image of the remaining recipe; the build takes minutes."""
    found = source.resolve(
        settings.load().pin, path=None, origin=Origin.AUTO, root=settings.ROOT, listener=progress.silent
    )
    prepared = local.prepare(
        engine,
        dataclasses.replace(variant, packages=NEAREST[variant.name]),
        settings=settings.Settings(
            registry="registry.example.org/without-toolkit",
            release_branch="main",
            url="https://example.org",
            pin=settings.load().pin,
        ),
        root=root,
        source=found,
        wanted=Origin.PACKAGES,
        listener=progress.silent,
    )
    # Without the tag of the variant's real image.
    plan = dataclasses.replace(prepared.plan, tags=prepared.plan.tags[:1])
    events: list[buildkit.Event] = []
    built = local.build(engine, dataclasses.replace(prepared, plan=plan), root=root, on_event=events.append)
    yield engine.image(built.image_id)
    engine.remove_image(plan.tags[0])


def test_the_contract_holds_except_for_the_accelerator(engine: Engine, variant: Variant, image: Image) -> None:
    report = judge.check(engine, image.id, variant)
    findings = {row.number: row.findings for row in report.rows if row.status is Status.FAIL}
    if not variant.static_backends:
        [finding] = findings.pop(14)
        assert variant.backend in finding
    assert findings == {}


def test_every_directory_answers(engine: Engine, variant: Variant, image: Image) -> None:
    report = containers.smoke(engine, image.id, variant, tensor_types=[TensorType.Q8_0])
    assert report.ok, [(row.server, row.check, row.seen) for row in report.rows if row.status != "pass"]


def test_bodhi_on_the_image_answers(engine: Engine, variant: Variant, image: Image) -> None:
    with bodhi.child(engine, image, variant.name) as made:
        said = bodhi.served(engine, made)
    assert said.count("starting /app/bin/") == 1
    assert f"/{variant.name}/llama-server" in said
