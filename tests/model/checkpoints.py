"""Random Whispers in transformers' format, as transformers writes them."""

from pathlib import Path
from typing import Any

import pytest

from jaxmoe import weights

SMALL = dict(
    d_model=32,
    encoder_layers=3,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=2,
    encoder_ffn_dim=128,
    decoder_ffn_dim=128,
    max_source_positions=100,
    max_target_positions=64,
)


def real_weights(name: str) -> Path:
    """The folder of pretrained weights; skips the test where no source has them."""
    try:
        return weights.resolve(name, progress=False)
    except weights.WeightsError as error:
        pytest.skip(f"no weights: {error}")


def random_whisper(seed: int = 0, **changes: Any) -> Any:
    """transformers' WhisperForConditionalGeneration with every parameter random."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.WhisperConfig(**(SMALL | {"vocab_size": 51864, "init_std": 0.15} | changes))
    model = transformers.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "layer_norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))  # zeros and ones hide a swap
    return model
