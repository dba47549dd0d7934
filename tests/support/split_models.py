"""A known-answer model in several files, as llama.cpp splits large ones."""

from __future__ import annotations

from pathlib import Path

import gguf

from base_images.smoke import model
from base_images.smoke.model import TensorType


def write(directory: Path, tensor_type: TensorType = TensorType.F32) -> list[Path]:
    """Writes `mine-00001-of-0000<n>.gguf` and the others, and returns their paths."""
    writer = gguf.GGUFWriter(directory / "mine.gguf", "llama", split_max_tensors=8)
    model.describe(writer, model.MODELS[tensor_type].architecture)
    for name, tensor in model.draw_tensors(tensor_type).items():
        writer.add_tensor(f"{name}.weight", tensor.stored, raw_dtype=tensor.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(directory.glob("mine-*.gguf"))
