from __future__ import annotations

import re

import pytest

from base_images import variants
from base_images.build import architectures as toolkit
from base_images.errors import UsageError
from base_images.variants import VARIANTS, Architectures

NVCC = "compute_50\ncompute_86\ncompute_90\n"
CLANG = (
    "Debian clang version 21.1.8\nTarget: amdgcn-amd-amdhsa\nAvailable CPUs for this target:\n\n"
    "\tgfx10-1-generic\n\tgfx90a\n\tgfx1100\n"
)


def architectures(name: str) -> Architectures:
    found = variants.find(name).architectures
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("variant", "asked", "argument"),
    [
        ("cuda", ["90"], {"CUDA_DOCKER_ARCH": "90"}),
        ("cuda", ["86", "90-virtual"], {"CUDA_DOCKER_ARCH": "86;90-virtual"}),
        ("cuda", ["86;120a-real, 86"], {"CUDA_DOCKER_ARCH": "86;120a-real"}),
        ("rocm", ["gfx90a:xnack-,gfx1100"], {"ROCM_DOCKER_ARCH": "gfx90a:xnack-;gfx1100"}),
        ("musa", ["31"], {"MUSA_DOCKER_ARCH": "31"}),
        ("cann", ["310p"], {"CHIP_TYPE": "310p"}),
        ("cpu", [], {}),
        ("cuda", [""], {}),
    ],
)
def test_architectures_become_the_argument_of_the_recipe(
    variant: str, asked: list[str], argument: dict[str, str]
) -> None:
    assert toolkit.architecture_argument(variants.find(variant), asked) == argument


@pytest.mark.parametrize(
    ("variant", "asked", "sentence"),
    [
        ("cuda", "sm_90", "'sm_90' is not a device architecture of CUDA: write it like 90"),
        ("cuda", "90; rm -rf /", "'rm' is not a device architecture"),
        ("cuda", "gfx1100", "'gfx1100' is not a device architecture of CUDA"),
        ("rocm", "90", "'90' is not a device architecture of ROCm: write it like gfx1100"),
        ("musa", "99", "The toolkit of musa does not know the device architecture 99: choose from 21, 22, 31"),
        ("cann", "910b,310p", "An image of cann is for one device architecture"),
        ("cpu", "90", "cpu is not compiled for device architectures"),
        ("vulkan", "90", "vulkan is not compiled for device architectures"),
    ],
)
def test_invalid_architectures_are_refused(variant: str, asked: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        toolkit.architecture_argument(variants.find(variant), [asked])


def test_architectures_are_read_from_the_toolkits_listing() -> None:
    assert toolkit.listed(architectures("cuda"), NVCC) == ("50", "86", "90")
    assert toolkit.listed(architectures("rocm"), CLANG) == ("gfx90a", "gfx1100")
    assert toolkit.listed(architectures("cuda"), "nvcc: not found") == ()


def test_unsupported_architectures_are_refused_with_the_supported_ones() -> None:
    toolkit.require_known("cuda", architectures("cuda"), ["90-real", "86"], ("50", "86", "90"))
    toolkit.require_known("rocm", architectures("rocm"), ["gfx90a:xnack+"], ("gfx90a",))
    with pytest.raises(
        UsageError, match="cuda does not know the device architecture 120a-real: choose from 50, 86, 90"
    ):
        toolkit.require_known("cuda", architectures("cuda"), ["90", "120a-real"], ("50", "86", "90"))


@pytest.mark.parametrize("variant", [row for row in VARIANTS if row.architectures], ids=lambda row: row.name)
def test_the_table_of_architectures_is_consistent(variant: variants.Variant) -> None:
    found = variant.architectures
    assert found is not None
    assert toolkit.architecture_argument(variant, [found.example]) == {found.argument: found.example}
    assert found.argument in variant.toolkit.values(), "what --arch sets is reported"
    assert bool(found.listing) != bool(found.known)


@pytest.mark.parametrize(
    ("variant", "version", "argument"),
    [
        ("cuda", "13.0.3", {"CUDA_VERSION": "13.0.3"}),
        ("rocm", "7.2.1", {"ROCM_VERSION": "7.2.1"}),
        ("musa", "rc4.3.0", {"MUSA_VERSION": "rc4.3.0"}),
        ("intel", "2025.3.3-0-devel-ubuntu24.04", {"ONEAPI_VERSION": "2025.3.3-0-devel-ubuntu24.04"}),
        ("cpu", "", {}),
    ],
)
def test_the_toolkits_version_becomes_the_argument_of_the_recipe(
    variant: str, version: str, argument: dict[str, str]
) -> None:
    assert toolkit.toolkit_argument(variants.find(variant), version) == argument


@pytest.mark.parametrize(
    ("variant", "version", "sentence"),
    [
        ("cpu", "13.0.3", "The variant cpu has no version of a toolkit to choose: leave --toolkit out"),
        ("cann", "9.1.0", "The variant cann has no version of a toolkit to choose"),
        ("cuda", "13.0.3@sha256:0", "'13.0.3@sha256:0' is not a version of a toolkit: write it like 13.0.3"),
        ("cuda", "13/0", "is not a version of a toolkit"),
    ],
)
def test_an_impossible_version_of_the_toolkit_is_refused(variant: str, version: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        toolkit.toolkit_argument(variants.find(variant), version)
