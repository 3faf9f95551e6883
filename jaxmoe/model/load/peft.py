"""Adapters in PEFT's format: adapter_config.json and adapter_model.safetensors, written."""

import json
from pathlib import Path
import re
from typing import Any

import numpy as np
import safetensors.numpy

from jaxmoe.model.load import hf
from jaxmoe.model.lora import Columns


def save_peft(folder: Path, columns: Columns, row: np.ndarray, base: str, dtype: Any = np.float32) -> None:
    """Writes a folder that peft.PeftModel.from_pretrained reads, over transformers' WhisperForConditionalGeneration.

    PEFT has one scale, lora_alpha / r, for all columns. It is the largest of `row` here; what others have less is in
    their B, and columns of scale 0 are left out.

    Args:
      columns: of every adapted linear map, {path: {"a": [L, D, K], "b": [L, K, F]}}.
      row: [K], the columns' scales, at least 0.
      base: the repository or folder of the model that is adapted.
    """
    row = np.asarray(row, np.float32)
    kept = np.flatnonzero(row)
    scale = float(row.max())
    tensors, modules = {}, []
    for path, ab in columns.items():
        a, b = np.asarray(ab["a"]), np.asarray(ab["b"])
        modules.append(re.escape(_module(path, 0)).replace(r"layers\.0\.", r"layers\.\d+\."))
        for layer in range(len(a)):
            name = f"base_model.model.{_module(path, layer)}"
            tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(a[layer][:, kept].T, dtype)
            tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray((b[layer] * (row / scale)[:, None])[kept].T, dtype)
    config = {
        "peft_type": "LORA",
        "task_type": None,  # none of PEFT's takes input_features
        "auto_mapping": {
            "base_model_class": "WhisperForConditionalGeneration",
            "parent_library": "transformers.models.whisper.modeling_whisper",
        },
        "base_model_name_or_path": base,
        "r": len(kept),
        "lora_alpha": scale * len(kept),
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": "|".join(modules),
        "inference_mode": True,
    }
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _module(path: str, layer: int) -> str:
    """transformers' name of a linear map."""
    return hf.tensor_name(f"{path}/kernel", layer).removesuffix(".weight")
