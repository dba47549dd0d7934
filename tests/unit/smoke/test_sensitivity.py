"""Which faults are found, with which types, on which devices: the table in docs/testing.md."""

from __future__ import annotations

import math

import pytest

from base_images.recipes import markdown
from base_images.smoke import model, precision, tolerances
from base_images.smoke.model import TensorType
from base_images.smoke.tolerances import Kind, Limits
from tests.support import documents, faults

DEVICES = {
    "CPU": (Kind.CPU, "", precision.PROMPTS),
    "CUDA on an H200": (Kind.GPU, "CUDA0 (NVIDIA H200)", precision.PROMPTS),
    "lavapipe": (Kind.SOFTWARE, "Vulkan0 (llvmpipe (LLVM 19.1.7, 256 bits))", precision.PROMPTS_IN_SOFTWARE),
}


def found(fault: str, tensor_type: TensorType, limits: Limits, prompts: int) -> bool:
    """Returns whether a fault is found on a device that is as noisy as its row."""
    seen = math.hypot(faults.effect(fault, tensor_type), limits.logits)
    return seen > limits.rms_of_logits(prompts * model.STEPS)


def table() -> str:
    """Returns the effect of each fault, by type, and the types that find it on each device."""
    rows = [("fault", *(f"{tensor_type}" for tensor_type in TensorType), *DEVICES)]
    for fault in faults.FAULTS:
        effects = (f"{faults.effect(fault, tensor_type):.2f}" for tensor_type in TensorType)
        by_device = []
        for kind, device, prompts in DEVICES.values():
            types = [
                tensor_type
                for tensor_type in TensorType
                if found(fault, tensor_type, tolerances.of(tensor_type, kind=kind, device=device), prompts)
            ]
            by_device.append("all" if len(types) == len(TensorType) else ", ".join(types))
        rows.append((fault, *effects, *by_device))
    return markdown.table(rows)


def test_the_document_says_what_is_found() -> None:
    made = table()
    assert made in documents.TEXTS["docs/testing.md"], f"docs/testing.md should have this table:\n{made}"


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("fault", faults.FAULTS)
def test_every_fault_is_found_with_some_type_on_every_device(fault: str, name: str) -> None:
    kind, device, prompts = DEVICES[name]
    for limited in (device, ""):  # also by the limits of an unknown device
        limits = {tensor_type: tolerances.of(tensor_type, kind=kind, device=limited) for tensor_type in TensorType}
        assert any(found(fault, tensor_type, limits[tensor_type], prompts) for tensor_type in TensorType)
