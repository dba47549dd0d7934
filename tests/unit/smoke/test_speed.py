from __future__ import annotations

import resource
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import pytest

from base_images.smoke import speed
from base_images.smoke.checks_http import CheckFailedError
from base_images.smoke.reference import Architecture
from base_images.smoke.speed import Measured, Rates, Shape

SMALL = Shape(
    architecture=Architecture(layers=2, heads=4, kv_heads=2, head_size=128, rope_base=1e6, epsilon=1e-6),
    width=512,
    feed_forward=1024,
    vocabulary=300,
)

# Log lines of llama-server b11312 at verbosity 4: the planned memory, twice, at its start, and the used one at its end.
LOG = """\
0.00.298.438 I common_memory_breakdown_print: |   - Vulkan0 (llvmpipe (LLVM 19.1.7, 256 bits)) | 24105 = 22298 + (   6 =     2 +       4 +       0) +        1800 |
0.00.301.887 I common_memory_breakdown_print: |   - Vulkan0 (llvmpipe (LLVM 19.1.7, 256 bits)) | 24105 = 22298 + (  17 =     1 +      16 +       0) +        1788 |
0.02.742.226 I common_memory_breakdown_print: | memory breakdown [MiB]                         | total    free    self   model   context   compute    unaccounted |
0.02.742.227 I common_memory_breakdown_print: |   - Vulkan0 (llvmpipe (LLVM 19.1.7, 256 bits)) | 24105 = 22267 + (  18 =     2 +      16 +       0) +        1818 |
0.02.742.228 I common_memory_breakdown_print: |   - Host                                       |                     0 =     0 +       0 +       0                |
"""  # noqa: E501 - as it is


def test_the_memory_of_a_device_is_that_at_the_end() -> None:
    assert speed.device_memory(LOG, "Vulkan") == 18


def test_the_memory_of_several_devices_is_added() -> None:
    second = LOG.splitlines()[3].replace("Vulkan0", "Vulkan1").replace("  18 =", "4321 =")
    assert speed.device_memory(f"{LOG}{second}\n", "Vulkan") == 18 + 4321


@pytest.mark.parametrize(("log", "name"), [("", "Vulkan"), (LOG, "CUDA"), (LOG, "Host")])
def test_memory_that_is_not_logged_is_none(log: str, name: str) -> None:
    assert speed.device_memory(log, name) is None


TIMINGS = {"prompt_n": 384, "prompt_per_second": 1000.5, "predicted_n": 64, "predicted_per_second": 100.5}


def test_the_rates_of_an_answer() -> None:
    assert speed.rates_of(TIMINGS) == Rates(prompt=1000.5, generated=100.5)


@pytest.mark.parametrize("other", [{"prompt_n": 1}, {"predicted_n": 63}])
def test_another_number_of_tokens_fails(other: dict[str, int]) -> None:
    with pytest.raises(CheckFailedError, match=r"The server read \d+ and made \d+ tokens where 384 and 64 were asked"):
        speed.rates_of({**TIMINGS, **other})


def test_speeds_of_both_servers() -> None:
    device = Measured(rates=Rates(prompt=2000.0, generated=30.0), load_seconds=3.0, memory=18)
    cpu = Measured(rates=Rates(prompt=500.0, generated=60.0), load_seconds=1.5)
    assert [(row.name, row.unit, row.device, row.cpu, row.ratio) for row in speed.speeds(device, cpu)] == [
        ("Prompt", "tokens per second", 2000.0, 500.0, 4.0),
        ("Generation", "tokens per second", 30.0, 60.0, 0.5),
        ("Load time", "seconds", 3.0, 1.5, 2.0),
        ("Memory on the device", "MiB", 18, None, None),
    ]


def test_speeds_of_one_server_alone() -> None:
    cpu = Measured(rates=Rates(prompt=500.0, generated=60.0), load_seconds=1.5)
    assert [(row.device, row.cpu) for row in speed.speeds(None, cpu)] == [
        (None, 500.0),
        (None, 60.0),
        (None, 1.5),
        (None, None),
    ]


def test_a_model_has_its_shape_and_is_removed(tmp_path: Path) -> None:
    with speed.written_model(SMALL, [tmp_path / "missing", tmp_path]) as path:
        assert path
        assert path.stat().st_mode & 0o777 == 0o644, "a container's user reads it"
        reader = gguf.GGUFReader(path)
        shapes = {tensor.name: tuple(reversed(tensor.shape.tolist())) for tensor in reader.tensors}
        assert shapes["blk.1.attn_q.weight"] == (512, 512)
        assert shapes["blk.1.attn_k.weight"] == (256, 512)
        assert shapes["blk.0.ffn_down.weight"] == (512, 1024)
        assert shapes["output.weight"] == shapes["token_embd.weight"] == (300, 512)
        matrices = [tensor for tensor in reader.tensors if len(tensor.shape) > 1]
        assert {tensor.tensor_type.name for tensor in matrices} == {"Q4_K"}
        assert sum(int(tensor.n_bytes) for tensor in matrices) == SMALL.bytes
        assert path.stat().st_size == pytest.approx(SMALL.bytes, rel=0.02)
        for tensor in matrices:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert values.std() == pytest.approx(0.02, rel=0.1), tensor.name
            assert np.isfinite(values).all()
        assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == SMALL.vocabulary
    assert list(tmp_path.iterdir()) == []


def test_the_default_shape_is_of_one_to_three_gigabytes() -> None:
    assert 1e9 < Shape().bytes < 3e9


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_without_space_no_model_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full, roomy = tmp_path / "full", tmp_path / "roomy"
    full.mkdir()
    roomy.mkdir()
    free = {full: SMALL.bytes + (1 << 30), roomy: SMALL.bytes + (1 << 30) + 1}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free[path]))
    with speed.written_model(SMALL, [full]) as path:
        assert path is None
    with speed.written_model(SMALL, [full, roomy]) as path:
        assert path
        assert roomy in path.parents
    assert list(full.iterdir()) == list(roomy.iterdir()) == []


def test_a_model_that_cannot_be_written_whole_is_not_there(tmp_path: Path) -> None:
    """The process may write half of the file, as under a quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL.bytes // 2, before[1]))
    try:
        with speed.written_model(SMALL, [tmp_path]) as path:
            assert path is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(tmp_path.iterdir()) == []
