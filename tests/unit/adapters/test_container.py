from __future__ import annotations

import pytest

from base_images.adapters.container import ContainerSpec, create_arguments


@pytest.mark.parametrize(("cpus", "nanoseconds"), [(None, None), (1, 1_000_000_000), (0.5, 500_000_000)])
def test_cpus_are_limited_as_by_docker_run(cpus: float | None, nanoseconds: int | None) -> None:
    assert create_arguments(ContainerSpec(image="any", cpus=cpus), keep=False)["nano_cpus"] == nanoseconds
