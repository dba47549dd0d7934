"""Origins with a real engine: a registry on loopback, Debian's packages, and the machine's package index."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from base_images import settings, variants
from base_images.adapters.container import ContainerSpec
from base_images.adapters.engine import Engine
from base_images.adapters.http_session import host_certificates
from base_images.build import bases as origins
from base_images.build import local, source
from base_images.build.bases import CERTIFICATES, ask_bases, resolve_bases
from base_images.build.inputs import Bases, Origin, SourceKind
from base_images.errors import EngineError, ImageNotFoundError, SourceError
from base_images.labels import TOOLKIT_PREFIX
from base_images.progress import Listener, Progress, silent
from base_images.roots import CUDA, Packages, Root
from base_images.variants import Platform
from tests.support import clones, wheels
from tests.support.builders import push_root, write_root
from tests.support.registries import Registry
from tests.support.servers import Files, serving

GLIBC = (os.confstr("CS_GNU_LIBC_VERSION") or "").removeprefix("glibc ")
NOWHERE = {"web": "127.0.0.1:1/node:24", "build": "127.0.0.1:1/ubuntu:24.04", "runtime": "127.0.0.1:1/ubuntu:24.04"}


def references(registry: Registry) -> dict[str, str]:
    """Returns the references of the two images in the registry."""
    return {
        "web": f"{registry.address}/node:24",
        "build": f"{registry.address}/ubuntu:24.04",
        "runtime": f"{registry.address}/ubuntu:24.04",
    }


@pytest.fixture
def registry(engine: Engine, tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path / "registry")
    try:
        tar = write_root(tmp_path / "root.tar", "getconf")
        for reference in sorted(set(references(registry).values())):
            # With another command in each, they are two images.
            push_root(engine, tar, reference, f'CMD ["{reference}"]')
        yield registry
    finally:
        registry.stop()
        for reference in references(registry).values():
            if engine.has_image(reference):
                engine.remove_image(engine.image(reference).id)


def resolve(
    engine: Engine, references: dict[str, str], origin: Origin, variant: str = "cpu", listener: Listener = silent
) -> Bases:
    return resolve_bases(engine, variants.find(variant), references, origin=origin, listener=listener)


@pytest.mark.parametrize("origin", [Origin.REGISTRIES, Origin.AUTO])
def test_bases_are_pulled_from_a_registry(engine: Engine, registry: Registry, origin: Origin) -> None:
    bases = resolve(engine, references(registry), origin)

    assert (bases.origin, bases.notices, bases.glibc) == (Origin.REGISTRIES, (), GLIBC)
    assert bases.runtime == bases.build
    assert bases.runtime.name == references(registry)["runtime"]
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", bases.runtime.digest)
    assert bases.runtime.reference == f"{bases.runtime.name}@{bases.runtime.digest}"
    assert bases.web.digest != bases.runtime.digest
    assert engine.has_image(bases.web.reference)


def test_asking_gives_the_digests_of_pulling_and_pulls_nothing(engine: Engine, registry: Registry) -> None:
    asked = ask_bases(references(registry))
    assert not engine.has_image(asked.build.reference)
    pulled = resolve(engine, references(registry), Origin.REGISTRIES)
    assert asked == replace(pulled, glibc="")
    pinned = {role: base.reference for role, base in (("web", asked.web), ("build", asked.build))}
    assert ask_bases({**pinned, "runtime": asked.runtime.reference}).build.digest == asked.build.digest


def test_the_version_of_toolkit_determines_the_bases(registry: Registry, tmp_path: Path) -> None:
    cuda, known = variants.find("cuda"), settings.load()
    text = (settings.ROOT / cuda.dockerfile).read_text()
    base = rf"ARG \1_BASE_IMAGE={registry.address}/ubuntu:${{CUDA_VERSION}}"
    (tmp_path / "checkout/dockerfiles").mkdir(parents=True)
    root = tmp_path / "checkout"
    (root / cuda.dockerfile).write_text(
        re.sub(r"^ARG (WEB|BUILD|RUNTIME)_BASE_IMAGE=.*$", base, text, flags=re.MULTILINE)
    )
    clones.commit_all(root)
    tree = source.expected(known.pin, path=None, root=root)
    preview = partial(local.preview, cuda, [Platform.AMD64], settings=known, root=root, source=tree)

    [plan] = preview(version="24.04")
    assert plan.arguments["CUDA_VERSION"] == plan.labels[f"{TOOLKIT_PREFIX}cuda"] == "24.04"
    assert plan.arguments["BUILD_BASE_IMAGE"].startswith(f"{registry.address}/ubuntu:24.04@sha256:")
    assert plan.version.endswith("-dirty")
    with pytest.raises(ImageNotFoundError, match=r"ubuntu:12\.8\.1"):
        preview()


def test_a_failed_request_for_a_base_is_one_sentence(registry: Registry) -> None:
    with pytest.raises(ImageNotFoundError, match=r"ubuntu:1\.04.*check its name and tag in the recipe"):
        ask_bases(references(registry) | {"runtime": f"{registry.address}/ubuntu:1.04"})
    registry.stop()
    with pytest.raises(SourceError, match=f"{registry.address}/node:24 cannot be looked up"):
        ask_bases(references(registry))


def test_an_unreachable_registry_is_reported_with_the_image(engine: Engine, registry: Registry) -> None:
    registry.stop()
    with pytest.raises(SourceError, match=rf"{registry.address}/node:24 is not available .* --origin packages"):
        resolve(engine, references(registry), Origin.REGISTRIES)


def test_images_that_were_pulled_before_replace_an_unreachable_registry(engine: Engine, registry: Registry) -> None:
    before = resolve(engine, references(registry), Origin.REGISTRIES)
    registry.stop()
    after = resolve(engine, references(registry), Origin.AUTO)

    assert (after.runtime, after.web) == (before.runtime, before.web)
    assert "images that were pulled before" in after.notices[0]


def test_a_base_does_not_follow_a_tag_that_moves(engine: Engine, registry: Registry, tmp_path: Path) -> None:
    base = resolve(engine, references(registry), Origin.REGISTRIES).runtime
    before = engine.image(base.reference).id
    engine.import_filesystem(write_root(tmp_path / "other.tar", "getconf"), base.name, ['CMD ["moved"]'])

    assert engine.image(base.name).id != before
    # The containerd store drops an image without a tag; BuildKit then pulls the digest from the registry.
    assert not engine.has_image(base.reference) or engine.image(base.reference).id == before
    engine.remove_image(before)


def test_a_missing_image_is_reported(engine: Engine, registry: Registry) -> None:
    with pytest.raises(ImageNotFoundError, match=r"ubuntu:1\.04"):
        resolve(engine, references(registry) | {"runtime": f"{registry.address}/ubuntu:1.04"}, Origin.AUTO)


def test_nothing_is_pulled_from_a_silent_registry(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origins, "REACH_SECONDS", 2)
    reported: list[Progress] = []
    with socket.create_server(("127.0.0.1", 0)) as silence:
        address = f"127.0.0.1:{silence.getsockname()[1]}"
        with pytest.raises(SourceError, match=rf"{address}/ubuntu:24.04 is not available .*no answer within 2 s"):
            resolve(
                engine, dict.fromkeys(NOWHERE, f"{address}/ubuntu:24.04"), Origin.REGISTRIES, listener=reported.append
            )

    assert reported == []


@pytest.fixture(scope="module")
def packages(engine: Engine) -> Bases:
    """Bases made of Debian's packages as the fallback; they stay on the engine, as after a build."""
    return resolve(engine, NOWHERE, Origin.AUTO)


def read(engine: Engine, reference: str, script: str) -> str:
    return engine.probe(ContainerSpec(image=reference, entrypoint=("sh", "-c", script))).output.strip()


def test_the_fallback_to_packages_is_reported(packages: Bases) -> None:
    assert packages.origin is Origin.PACKAGES
    assert "127.0.0.1:1/node:24 is not available" in packages.notices[0]
    assert "Debian trixie's packages" in packages.notices[0]
    assert packages.glibc == "2.41"


def test_existing_bases_are_not_made_again(engine: Engine, packages: Bases) -> None:
    reported: list[Progress] = []
    again = resolve(engine, NOWHERE, Origin.PACKAGES, listener=reported.append)

    # An image that was made again would have another creation time, and so another id.
    assert (again.web, again.build, again.runtime) == (packages.web, packages.build, packages.runtime)
    assert again.notices == ()
    assert reported == []


def test_the_host_certificates_are_in_the_build_bases_and_never_in_the_runtime(engine: Engine, packages: Bases) -> None:
    authorities = host_certificates()
    assert authorities is not None
    sizes = {
        name: read(engine, base.reference, f"cat {CERTIFICATES} 2>/dev/null | wc -c")
        for name, base in (("web", packages.web), ("build", packages.build), ("runtime", packages.runtime))
    }

    assert sizes == {"web": str(authorities.stat().st_size), "build": str(authorities.stat().st_size), "runtime": "0"}
    assert read(engine, packages.runtime.reference, "find / -xdev -name '*.pem' -o -name '*.crt' 2>/dev/null") == ""
    assert engine.image(packages.runtime.reference).environment.keys() <= {"PATH"}
    assert engine.image(packages.web.reference).environment["NODE_EXTRA_CA_CERTS"] == CERTIFICATES


def test_the_bases_have_what_the_recipes_need(engine: Engine, packages: Bases) -> None:
    assert "trixie" in read(engine, packages.runtime.reference, ". /etc/os-release; echo $VERSION_CODENAME")
    assert re.match(r"v\d+\.\d+\.\d+\n\d+\.", read(engine, packages.web.reference, "node --version; npm --version"))


def test_no_label_of_ours_is_inherited_from_the_runtime_base(engine: Engine, packages: Bases) -> None:
    assert engine.image(packages.runtime.reference).labels == {}
    assert engine.image(packages.build.reference).labels == {"bodhi.resource": "origin"}


def test_a_toolkit_of_the_package_index_is_where_compilers_and_the_loader_look(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With small wheels: NVIDIA's have 760 MB, and `nox -s image-cuda -- --toolkit 13.0.3` tests those."""
    (tmp_path / "index").mkdir()
    wheels.write_index(tmp_path / "index")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "my cache"))
    small = Packages(build=Root(packages=("binutils",), wheels=replace(wheels.WANTED, version="")))
    root = settings.ROOT
    with serving(partial(Files, directory=tmp_path / "index")) as address:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://{address}/simple/")
        plan = local.prepare(
            engine,
            replace(variants.find("cuda"), packages=replace(CUDA, by_major={"13": small})),
            settings=settings.load(),
            root=root,
            source=source.expected(settings.load().pin, path=None, root=root),
            wanted=Origin.PACKAGES,
            listener=silent,
            architectures=["90"],
            version="13.0.3",
        ).plan
    base = plan.arguments["BUILD_BASE_IMAGE"]
    try:
        assert (plan.arguments["CUDA_VERSION"], plan.arguments["CUDA_DOCKER_ARCH"]) == ("13.0.3", "90")
        assert "GCC_VERSION" not in plan.arguments
        assert plan.labels[f"{TOOLKIT_PREFIX}cuda"] == "13.0.3"
        assert plan.version.endswith("-dirty")
        assert os.uname().machine in read(engine, base, "nvcc")
        assert "/usr/local/cuda/lib64: (from /etc/ld.so" in read(engine, base, "ldconfig -N -v 2>&1")
        stub = "/usr/local/cuda/lib64/stubs/libcuda.so"
        assert read(engine, base, "ls /usr/local/cuda/lib64/stubs") == "libcuda.so"
        assert "libcuda.so.1" in read(engine, base, f"readelf -d {stub}")
        assert read(engine, base, f"nm -D {stub} | grep -c ' T cu'") == "3"
        assert read(engine, base, f"grep -rlsF {address} /etc /usr /root") == ""
        assert list((tmp_path / "my cache").rglob("*.whl")) == []
    finally:
        engine.remove_image(base)


def test_ctrl_c_while_making_a_base_leaves_nothing(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    # With packages of no other base, so that it does not exist yet.
    cpu = replace(variants.find("cpu"), packages=Packages(runtime=Root(packages=("hello",))))

    def interrupt(progress: Progress) -> None:
        if "extracting" in progress.note:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resolve_bases(engine, cpu, NOWHERE, origin=Origin.PACKAGES, listener=interrupt)

    assert [path.name for path in tmp_path.rglob("*")] == ["cache", "llama-cpp-base-images"]
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text(encoding="utf-8")


@pytest.mark.parametrize("variant", ["musa", "intel", "cann"])
def test_an_unavailable_vendor_base_is_reported_with_reason_and_remedy(engine: Engine, variant: str) -> None:
    for origin in (Origin.REGISTRIES, Origin.AUTO):
        with pytest.raises(SourceError) as caught:
            resolve(engine, NOWHERE, origin, variant)
        assert "127.0.0.1:1/node:24 is not available from its registry (" in str(caught.value)
        assert "connect: connection refused" in str(caught.value)
    assert f"{variant} needs a registry's bases" in str(caught.value)
    with pytest.raises(SourceError, match=r"No Debian package has the compiler of .* Use --origin registries"):
        resolve(engine, NOWHERE, Origin.PACKAGES, variant)


def test_a_toolkit_too_large_for_the_disk_is_refused_before_the_fetch(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    free = engine.free_disk()
    if free is None:
        pytest.skip("this engine keeps its images on another machine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    huge = Packages(build=Root(packages=("hello",)), size=free * 2)
    cuda = replace(variants.find("cuda"), packages=huge)
    with pytest.raises(EngineError, match=r"The base images of cuda take about .* GB and the engine's disk has .* GB"):
        resolve_bases(engine, cuda, NOWHERE, origin=Origin.PACKAGES, listener=silent)
    assert not list(tmp_path.rglob("root.tar"))


def test_a_toolkit_too_large_for_the_disk_is_not_pulled(engine: Engine, registry: Registry) -> None:
    free = engine.free_disk()
    if free is None:
        pytest.skip("this engine keeps its images on another machine")
    cuda = replace(variants.find("cuda"), toolkit_size=free * 2)
    with pytest.raises(EngineError, match="make room"):
        resolve_bases(engine, cuda, references(registry), origin=Origin.AUTO, listener=silent)

    assert not engine.has_image(references(registry)["build"])


def test_the_pin_comes_from_the_package_index(tmp_path: Path) -> None:
    """The only test that needs the machine's package index, or the sdist in the cache from an earlier run."""
    pin = settings.load().pin
    found = source.resolve(pin, path=None, origin=Origin.PACKAGES, root=tmp_path, listener=silent)

    assert (found.kind, found.commit, found.dirty) == (SourceKind.SDIST, pin.commit, False)
    assert found.build_number == int(pin.tag[1:])
    reported: list[Progress] = []
    assert source.resolve(pin, path=None, origin=Origin.AUTO, root=tmp_path, listener=reported.append) == found
    assert reported == []
