"""Pretrained Whisper in any supported format -> dimensions, float32 parameters, tokenizer."""

from pathlib import Path
from typing import Any

from jaxmoe import weights
from jaxmoe.data.text import Tokenizer
from jaxmoe.model.load import ctranslate2, hf
from jaxmoe.model.load.tree import LoadError
from jaxmoe.model.whisper import ModelDimensions

__all__ = ["LoadError", "load_whisper"]


def load_whisper(name_or_path: str | Path, progress: bool = True) -> tuple[ModelDimensions, dict[str, Any], Tokenizer]:
    """The Whisper called so (weights.resolve), or in this folder in transformers' or CTranslate2's format.

    The tree is {"encoder", "decoder"} of float32 numpy arrays, kernels [in, out], blocks stacked on axis 0.

    Raises:
      WeightsError: the name is unknown or no source has it.
      LoadError: the files are not a complete Whisper of a known format.
    """
    folder = weights.resolve(name_or_path, progress)
    if (folder / "model.bin").is_file():
        dims, params = ctranslate2.load(folder)
    elif any((folder / name).is_file() for name in (hf.SINGLE, hf.INDEX)):
        dims, params = hf.load(folder)
    else:
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:20]) if folder.is_dir() else "a file"
        raise LoadError(
            f"{folder}: found {found or 'an empty folder'}, expected a folder with {hf.SINGLE} (transformers) or "
            "model.bin (CTranslate2); convert pytorch_model.bin or *.pt with transformers' save_pretrained."
        )
    return dims, params, Tokenizer.from_folder(folder)
