"""dockerfiles/llama-threads: how many threads the limits of a container leave, on machines described here."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from base_images import settings

V1 = "/sys/fs/cgroup/cpu,cpuacct"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine as a container sees it.

    Attributes:
        cores: the processors of each core.
        allowed: as /proc/self/status has it; may name processors that are offline or do not exist.
        cgroup: /proc/self/cgroup.
        files: path to content.
    """

    cores: Sequence[Sequence[int]]
    allowed: str = "0-1023"
    cgroup: str = "0::/\n"
    files: Mapping[str, str] = field(default_factory=dict)


def threads(root: Path, machine: Machine) -> str:
    files = dict(machine.files)
    for core in machine.cores:
        for processor in core:
            mask = f"{sum(1 << sibling for sibling in core):08x}"
            files[f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings"] = f"{mask}\n"
    files["/proc/self/status"] = f"Name:\tsh\nCpus_allowed:\tff\nCpus_allowed_list:\t{machine.allowed}\n"
    files["/proc/self/cgroup"] = machine.cgroup
    for name, content in files.items():
        path = root / name.removeprefix("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    script = settings.ROOT / "dockerfiles/llama-threads"
    done = subprocess.run(["/bin/sh", str(script), str(root)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.strip()


FOUR = tuple((number,) for number in range(4))
HYPERTHREADS = tuple((number, number + 4) for number in range(4))
HYBRID = ((0, 1), (2, 3), (4,), (5,), (6,), (7,))
P_CORES = {"/sys/devices/cpu_core/cpus": "0-3\n"}
DOCKER_V1 = "4:memory:/docker/1f\n3:cpu,cpuacct:/docker/1f\n1:name=systemd:/docker/1f\n0::/docker/1f\n"


def v2(quota: str, group: str = "") -> dict[str, str]:
    return {f"/sys/fs/cgroup{group}/cpu.max": f"{quota}\n"}


def v1(quota: int, group: str = "") -> dict[str, str]:
    return {f"{V1}{group}/cpu.cfs_quota_us": f"{quota}\n", f"{V1}{group}/cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (Machine(cores=FOUR), ""),
        (Machine(cores=FOUR, files=v2("max 100000")), ""),
        (Machine(cores=FOUR, files=v2("400000 100000")), ""),
        (Machine(cores=FOUR, files=v2("50000 100000")), "1"),
        (Machine(cores=FOUR, files=v2("299000 100000")), "2"),
        (Machine(cores=FOUR, files=v2("30000 10000")), "3"),
        (Machine(cores=FOUR, cgroup="0::/a/b\n", files=v2("max 100000", "/a/b") | v2("200000 100000", "/a")), "2"),
        (Machine(cores=FOUR, cgroup="0::/docker/1f\n", files=v2("200000 100000")), "2"),
        (Machine(cores=FOUR, cgroup="0::/../..\n", files=v2("200000 100000")), "2"),
        (Machine(cores=FOUR, cgroup=DOCKER_V1, files=v1(-1)), ""),
        (Machine(cores=FOUR, cgroup=DOCKER_V1, files=v1(150000)), "1"),
        (Machine(cores=FOUR, cgroup=DOCKER_V1, files=v1(-1, "/docker/1f") | v1(300000, "/docker")), "3"),
        (Machine(cores=FOUR, allowed="0,2-3"), "3"),
        (Machine(cores=FOUR, allowed="0-2", files=v2("200000 100000")), "2"),
        (Machine(cores=HYPERTHREADS), ""),
        (Machine(cores=HYPERTHREADS, allowed="0-3"), ""),
        (Machine(cores=HYPERTHREADS, allowed="0-1,4-5"), "2"),
        (Machine(cores=HYPERTHREADS, files=v2("600000 100000")), ""),
        (Machine(cores=HYBRID, files=P_CORES), ""),
        (Machine(cores=HYBRID, files=P_CORES | v2("300000 100000")), ""),
        (Machine(cores=HYBRID, files=P_CORES | v2("100000 100000")), "1"),
        (Machine(cores=HYBRID, files=P_CORES, allowed="0-6"), "5"),
        (Machine(cores=(), files=v2("100000 100000")), ""),
    ],
    ids=[
        "no limit",
        "no quota",
        "a quota of all",
        "half a processor",
        "almost three",
        "another period",
        "the cgroup above",
        "the host's path",
        "a path outside the namespace",
        "v1: no quota",
        "v1: one and a half",
        "v1: the cgroup above",
        "processors",
        "processors and quota",
        "hyperthreads",
        "one hyperthread of each core",
        "both hyperthreads of two cores",
        "more than the cores",
        "performance cores",
        "more than the performance cores",
        "fewer than the performance cores",
        "processors of both kinds",
        "a kernel that hides the cores",
    ],
)
def test_the_lowest_limit_below_the_server_s_own_choice(tmp_path: Path, machine: Machine, expected: str) -> None:
    assert threads(tmp_path, machine) == expected
