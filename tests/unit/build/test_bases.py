from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from base_images import variants
from base_images.build import bases, packages, wheels
from base_images.build.bases import base_key
from base_images.build.mirrors import apt_sources
from base_images.progress import Progress, pull_progress
from base_images.roots import UNSTABLE, Packages, Root
from tests.support.images import image

DIGEST = "sha256:" + "a" * 64
CPU = Packages()
ROLES = bases._roots(CPU)
SIGNED = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"


def test_the_mirrors_are_those_of_apt() -> None:
    targets = (
        "Debian|http://mirror.example/debian/\n"
        "Debian|http://mirror.example/debian/\n"
        "Debian-Security|http://mirror.example/security/\n"
        "Debian|http://second.example/debian/\n"
    )

    assert apt_sources(targets, Root()) == (
        f"deb {SIGNED} http://mirror.example/debian/ trixie main",
        f"deb {SIGNED} http://mirror.example/debian/ trixie-updates main",
        f"deb {SIGNED} http://mirror.example/security/ trixie-security main",
    )


def test_a_mirror_without_security_updates_is_enough() -> None:
    assert len(apt_sources("Debian|file:/mirror/", Root())) == 2


@pytest.mark.parametrize("targets", ["", "Debian-Security|http://mirror.example/security/\n"])
def test_no_debian_mirror(targets: str) -> None:
    assert apt_sources(targets, Root()) == ()


def test_unstable_has_no_updates_suite_and_may_include_non_free() -> None:
    root = Root(suite=UNSTABLE, components=("main", "non-free"))

    assert apt_sources("Debian|file:/mirror/\nDebian-Security|file:/security/\n", root) == (
        f"deb {SIGNED} file:/mirror/ unstable main non-free",
    )


def test_the_key_of_a_base_changes_with_its_content() -> None:
    before = {role: base_key(role, root, ("deb a",), b"authorities", "amd64") for role, root in ROLES.items()}

    assert len(set(before.values())) == len(ROLES)
    for role, key in before.items():
        assert base_key(role, ROLES[role], ("deb a",), b"authorities", "amd64") == key
        assert base_key(role, ROLES[role], ("deb b",), b"authorities", "amd64") != key
        assert base_key(role, ROLES[role], ("deb a",), b"authorities", "arm64") != key
        assert base_key(role, Root(packages=("hello",)), ("deb a",), b"authorities", "amd64") != key
        assert base_key(role, replace(ROLES[role], suite="unstable"), ("deb a",), b"authorities", "amd64") != key


def test_host_certificates_change_the_keys_of_build_bases_only() -> None:
    changed = {
        role
        for role in ROLES
        if base_key(role, ROLES[role], (), b"authorities", "amd64")
        != base_key(role, ROLES[role], (), b"others", "amd64")
    }

    assert changed == {"build", "web"}


def test_the_runtime_base_has_neither_certificates_nor_a_label() -> None:
    assert bases._changes("runtime", Root()) == ['CMD ["bash"]']
    assert any("NODE_EXTRA_CA_CERTS=/usr/local/share/host-ca.pem" in change for change in bases._changes("web", Root()))


def test_wheels_change_the_keys_of_their_bases_and_give_the_build_base_a_path() -> None:
    cuda = packages.of_version(variants.find("cuda"), "13.0.3")
    newer = packages.of_version(variants.find("cuda"), "13.4.1")
    assert cuda is not None
    assert newer is not None
    keys = {
        base_key(role, root, (), b"", "amd64")
        for made in (cuda, newer)
        for role, root in (("build", made.build), ("runtime", made.runtime))
    }
    assert len(keys) == 4
    assert "PATH=/usr/local/cuda/bin:/usr" in bases._changes("build", cuda.build)[1]
    assert bases._changes("runtime", cuda.runtime) == ['CMD ["bash"]']


def test_the_path_to_wheels_is_that_of_the_toolkit_in_both_bases(tmp_path: Path) -> None:
    cuda = packages.of_version(variants.find("cuda"), "13.0.3")
    assert cuda is not None
    assert cuda.build.wheels is not None
    assert cuda.runtime.wheels is not None
    tar = tmp_path / "a b.tar"
    build, runtime = (wheels.hooks(root, tar) for root in (cuda.build.wheels, cuda.runtime.wheels))
    assert runtime == [f"--customize-hook=tar-in '{tar}' /", '--customize-hook=chroot "$1" ldconfig']
    assert build[:2] == runtime
    assert "libcuda.so.1" in build[2]


def test_rocm_alone_comes_from_experimental() -> None:
    rocm = variants.find("rocm").packages
    assert rocm is not None
    assert apt_sources("Debian|file:/mirror/\nDebian-Security|file:/security/\n", rocm.runtime) == (
        f"deb {SIGNED} file:/mirror/ unstable main",
        f"deb {SIGNED} file:/mirror/ experimental main",
    )
    validity, pin = bases._apt_options(rocm.build)
    assert validity == '--aptopt=Acquire::Check-Valid-Until "false"'
    assert "src:rocm-hipamd:any" in pin
    assert "'Pin: release a=experimental' 'Pin-Priority: 600'" in pin
    assert "Package: *" not in pin
    assert bases._apt_options(Root()) == []
    without = replace(rocm.build, experimental=())
    assert len({base_key("build", root, (), b"", "amd64") for root in (rocm.build, without)}) == 2


@pytest.mark.parametrize(
    ("reference", "repository"),
    [
        ("docker.io/library/ubuntu:24.04", "ubuntu"),
        ("docker.io/ubuntu:24.04", "ubuntu"),
        ("ubuntu", "ubuntu"),
        ("docker.io/nvidia/cuda:12.8.1-devel-ubuntu24.04", "nvidia/cuda"),
        ("127.0.0.1:5000/node:24", "127.0.0.1:5000/node"),
        ("localhost:5000/a/b", "localhost:5000/a/b"),
        (f"quay.io/ascend/cann@{DIGEST}", "quay.io/ascend/cann"),
    ],
)
def test_the_repository_of_a_reference(reference: str, repository: str) -> None:
    assert bases._repository(reference) == repository


def test_the_digest_is_from_the_references_own_repository() -> None:
    pulled = image(repo_digests=(f"mirror.example/ubuntu@sha256:{'c' * 64}", f"ubuntu@{DIGEST}"))

    assert bases._digest(pulled, "docker.io/ubuntu:24.04") == DIGEST
    assert bases._digest(pulled, "docker.io/node:24") is None
    assert bases._digest(image(), "ubuntu:24.04") is None


def test_a_tag_is_pinned_and_a_digest_stays() -> None:
    assert bases._pinned("docker.io/ubuntu:24.04", DIGEST) == f"docker.io/ubuntu:24.04@{DIGEST}"
    assert bases._pinned(f"ubuntu@{DIGEST}", DIGEST) == f"ubuntu@{DIGEST}"


def test_the_layers_of_a_pull_are_added_up() -> None:
    reported: list[Progress] = []
    on_message = pull_progress("ubuntu:24.04", reported.append)
    on_message({"status": "Pulling from library/ubuntu", "id": "24.04"})
    on_message({"status": "Downloading", "id": "a", "progressDetail": {"current": 10, "total": 100}})
    on_message({"status": "Downloading", "id": "b", "progressDetail": {"current": 1, "total": 50}})
    on_message({"status": "Downloading", "id": "a", "progressDetail": {"current": 90, "total": 100}})
    on_message({"status": "Pull complete", "id": "a", "progressDetail": {}})

    assert [(progress.done, progress.total) for progress in reported] == [
        (0, None),
        (10, 100),
        (11, 150),
        (91, 150),
        (91, 150),
    ]


def test_a_file_is_added_to_a_root_file_system(tmp_path: Path) -> None:
    tar = tmp_path / "root.tar"
    with tarfile.open(tar, "w") as archive:
        archive.addfile(tarfile.TarInfo("./etc/hosts"))
    bases._add_file(tar, "/usr/local/share/host-ca.pem", b"authorities")

    with tarfile.open(tar) as archive:
        assert archive.getnames() == ["./etc/hosts", "./usr/local/share/host-ca.pem"]
        entry = archive.getmember("./usr/local/share/host-ca.pem")
        stream = archive.extractfile(entry)
        assert stream is not None
        assert (stream.read(), entry.mode, entry.uid) == (b"authorities", 0o644, 0)


@pytest.mark.parametrize(
    ("package", "upstream"),
    [
        ("12.4.131~12.4.1-2", "12.4.1"),
        ("6.4.3-5", "6.4.3"),
        ("7.0.2+dfsg-3", "7.0.2"),
        ("1:2.3-4", "2.3"),
        ("5.0", "5.0"),
    ],
)
def test_the_version_of_a_package_is_that_of_the_toolkit(package: str, upstream: str) -> None:
    assert packages.upstream_version(package) == upstream


def test_debian_has_no_compiler_for_three_of_them() -> None:
    without = {variant.name for variant in variants.VARIANTS if variant.packages is None}

    assert without == {"musa", "intel", "cann"}
