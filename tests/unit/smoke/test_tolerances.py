"""The limits that follow from what was measured: no right device fails, and how likely one is to."""

from __future__ import annotations

import json
import math

import pytest

from base_images import variants
from base_images.errors import UsageError
from base_images.smoke import agreement, model, precision, runner, tolerances
from base_images.smoke.model import TensorType
from base_images.smoke.report import Check
from base_images.smoke.tolerances import FAR, Kind, Noise

H200 = "CUDA0 (NVIDIA H200)"
LAVAPIPE = "Vulkan0 (llvmpipe (LLVM 19.1.7, 256 bits))"
OTHER = "CUDA0 (NVIDIA GeForce RTX 4090)"
ROWS = tolerances.table()


def steps_of(row: Noise) -> int:
    return row.n // precision.TOP


@pytest.mark.parametrize("tensor_type", TensorType)
@pytest.mark.parametrize("cache", ["f16", "q8_0"])
def test_every_type_was_measured_on_the_cpu(tensor_type: TensorType, cache: str) -> None:
    assert [row for row in ROWS if (row.kind, row.type, row.cache) == (Kind.CPU, tensor_type, cache)]


def test_the_table_is_as_calibrate_writes_it() -> None:
    assert tolerances.as_json(ROWS) == tolerances.FILE.read_text(encoding="utf-8")
    for row in ROWS:
        assert 0 < row.mean < row.rms < row.p99 < row.largest
        assert row.type in list(TensorType)
        if row.logits is not None:
            assert 0.85 < row.logits / row.rms < 1, "what stands for the logits' RMS where that was not measured"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.device}, {row.type}, {row.cache}, {row.flash_attention}")
def test_every_measured_device_passes(row: Noise) -> None:
    own = f"{row.backend}0 ({row.device})"
    for device in ("", own):
        limits = tolerances.of(row.type, kind=row.kind, device=device, caches={row.cache})
        assert row.rms < limits.rms(steps_of(row))
        assert (row.logits or row.rms) < limits.rms_of_logits(steps_of(row))
        assert row.largest < limits.largest
        assert (row.embedding or 0) < limits.embedding


# What a right cuda image showed on an H200, and the limits of lavapipe and the CPU called wrong: the largest difference
# of a known answer, and of cpu/ in the longer run.
@pytest.mark.parametrize("device", [H200, OTHER, ""])
def test_what_the_h200_showed_passes(device: str) -> None:
    for tensor_type, largest in (
        ("F32", 0.0050),
        ("F16", 0.0064),
        ("Q8_0", 0.1619),
        ("Q4_0", 0.3084),
        ("Q4_K", 0.3427),
    ):
        limits = tolerances.of(tensor_type, kind=Kind.GPU, device=device)
        # The RMS is not known; of 80 numbers the largest is 2 times it and more.
        assert largest / 2 < limits.rms(model.STEPS)
        assert largest < limits.largest
    for tensor_type, largest in (
        ("F16", 0.0210),
        ("Q8_0", 0.2097),
        ("Q4_0", 0.4269),
        ("Q4_0", 0.4745),
        ("Q4_K", 0.7405),
    ):
        limits = tolerances.between(
            tolerances.of(tensor_type, kind=Kind.GPU, device=device), tolerances.of(tensor_type)
        )
        assert largest < limits.largest / 2
    # The mean of the longer run; of a normal distribution it is 0.8 times the RMS.
    for tensor_type, mean in (("F16", 0.0024), ("Q8_0", 0.0336), ("Q4_K", 0.0810)):
        limits = tolerances.between(
            tolerances.of(tensor_type, kind=Kind.GPU, device=device), tolerances.of(tensor_type)
        )
        assert mean / 0.75 < limits.rms(len(agreement.PROMPT_LENGTHS) * agreement.STEPS)


def test_a_right_device_fails_by_chance_in_fewer_than_one_of_ten_thousand_runs() -> None:
    judged = []
    for server in runner.plan(variants.find("cuda"), on_device=True):
        for check in server.checks:
            if check is Check.PRECISION:
                judged.append(precision.PROMPTS * model.STEPS * len(model.TOKENS))
            elif check in {Check.COMPLETION, Check.OPENAI_COMPLETION, Check.CHAT, Check.CHAT_STREAMED, Check.AT_ONCE}:
                judged.append(model.STEPS * (1 + model.TOP))
    judged += [len(agreement.PROMPT_LENGTHS) * agreement.STEPS * agreement.TOP] * len(agreement.PAIRS)
    assert len(judged) > 20
    assert 0 < tolerances.chance(judged) < 1e-4


def test_a_known_device_is_judged_by_its_own_rows_and_another_by_the_noisiest_of_its_kind() -> None:
    h200, lavapipe, unknown = (
        tolerances.of("Q4_0", kind=kind, device=device)
        for kind, device in ((Kind.GPU, H200), (Kind.SOFTWARE, LAVAPIPE), (Kind.GPU, OTHER))
    )
    assert unknown == tolerances.of("Q4_0", kind=Kind.GPU)
    assert (h200.noise, unknown.noise) == (0.09255, 0.09255)
    assert lavapipe.noise < 0.02
    # The H200's rows are CUDA's, and lavapipe's F16 is noisier.
    assert tolerances.of("F16", kind=Kind.GPU, device="Vulkan0 (NVIDIA H200)") == tolerances.of("F16", kind=Kind.GPU)


def test_what_was_not_measured_is_taken_from_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tolerances, "table", lambda: tuple(row for row in ROWS if row.kind is Kind.CPU))
    cpu, unmeasured = tolerances.of("Q4_0"), tolerances.of("Q4_0", kind=Kind.GPU)
    assert unmeasured.noise == pytest.approx(tolerances.UNMEASURED * cpu.noise)
    # Not less than any GPU has shown.
    measured = {row.type: row.rms for row in ROWS if row.kind is Kind.GPU}
    for tensor_type, rms in measured.items():
        assert rms < tolerances.of(tensor_type, kind=Kind.GPU).rms(1024)


def test_a_cache_of_fewer_bits_adds_its_rounding() -> None:
    exact, rounded = (tolerances.of("F16", caches={cache}).noise for cache in (None, "q8_0"))
    assert rounded > 5 * exact
    gpu, with_cache = (tolerances.of("Q4_0", kind=Kind.GPU, caches={cache}) for cache in ("f16", "q8_0"))
    assert 1.02 < with_cache.noise / gpu.noise < 1.2
    with pytest.raises(UsageError, match=r"cache of q4_1 is not known: measure it with `invoke calibrate`"):
        tolerances.of("Q8_0", caches={"q4_1"})


def test_more_steps_are_judged_more_sharply() -> None:
    limits = tolerances.of("Q4_K")
    assert limits.rms(16) > limits.rms(256) > limits.rms(1024) > limits.rms_of_logits(1024) > limits.logits
    assert limits.rms_of_logits(1024) < 1.12 * limits.logits
    assert limits.largest == FAR * limits.noise
    both = tolerances.between(limits, limits)
    assert both.noise == pytest.approx(math.sqrt(2) * limits.noise)


# Lines of llama-server b10454 at verbosity 4.
@pytest.mark.parametrize(
    ("line", "device"),
    [
        (
            "I llama_prepare_model_devices: using device Vulkan0 (llvmpipe (LLVM 19.1.7, 256 bits)) (n) - 1 MiB free",
            LAVAPIPE,
        ),
        ("I llama_prepare_model_devices: using device CUDA0 (NVIDIA H200) (0000:19:00.0) - 142017 MiB free", H200),
        ("I load_tensors: CPU_Mapped model buffer size = 4.69 MiB", ""),
    ],
)
def test_the_device_is_read_from_the_log(line: str, device: str) -> None:
    assert tolerances.device_of(f"before\n0.00.052.888 {line}\nafter\n") == device


def test_a_row_is_read_back() -> None:
    assert [tolerances.row_of(row) for row in json.loads(tolerances.as_json(ROWS[:3]))] == list(ROWS[:3])
