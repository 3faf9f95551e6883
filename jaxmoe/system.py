"""A recogniser ready to use: Whisper, its tokenizer, and the adapters of a run where there are any."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoe.data.audio import N_SAMPLES, log_mel_spectrogram
from jaxmoe.data.text import Tokenizer
from jaxmoe.model.whisper import Whisper

SAMPLES_PER_POSITION = 320  # of the encoder: a hop of 160, two frames a position


class System:
    """A bare Whisper. A system with adapters overrides `adapt`.

    Args:
      name: for people and for the JSON output.
      params: {"encoder", "decoder"}; they are put on the device in the model's dtype.
    """

    def __init__(self, name: str, model: Whisper, params: Any, tokenizer: Tokenizer) -> None:
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.params = jax.device_put(jax.tree.map(lambda x: np.asarray(x, model.dtype), params))

    def log_mel(self, samples: np.ndarray) -> jax.Array:
        """Input features of windows [B, 480000] padded with zeros -> [B, M, 3000]."""
        return log_mel_spectrogram(samples, self.model.dims.n_mels)

    def encode(self, mel: jax.Array, num_samples: np.ndarray) -> tuple[jax.Array, jax.Array]:
        """Latents [B, S, D] and the embedding e [B, D], the mean over the positions that hold audio.

        Args:
          mel: [B, M, 3000].
          num_samples: [B], the samples of each window that are sound and not padding.
        """
        positions = np.ceil(np.clip(num_samples, 1, N_SAMPLES) / SAMPLES_PER_POSITION)
        weights = np.arange(self.model.dims.n_audio_ctx)[None, :] < positions[:, None]
        return _encode(self.model, self.params, mel, jnp.asarray(weights, jnp.float32))

    def adapt(self, embedding: jax.Array) -> tuple[Any, jax.Array | None]:
        """LoRA columns (as lora.nested gives them) and their scales [B, K] for embeddings [B, D]; None, None if bare."""
        del embedding
        return None, None


@functools.partial(jax.jit, static_argnames="model")
def _encode(
    model: Whisper, params: Any, mel: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    latents, depths = model.apply(
        {"params": params}, mel, weights, method=lambda whisper, *args: whisper.encoder(*args)
    )
    return latents, depths[:, -1]


def load_system(model: str | Path, checkpoint: Path | None = None) -> System:
    """The system of a Whisper by name or folder, or of a run's workdir.

    Raises:
      ValueError: if the model is unknown or the folder holds no run.
    """
    from jaxmoe.model.load import load_whisper

    if checkpoint is not None:
        raise ValueError(f"--checkpoint={checkpoint}: this version transcribes with bare Whisper only.")
    dims, params, tokenizer = load_whisper(model)
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return System(str(model), Whisper(dims, dtype), params, tokenizer)
