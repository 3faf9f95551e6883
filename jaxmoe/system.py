"""A recogniser ready to use: Whisper, its tokenizer, and the adapters of a run where there are any."""

import functools
import json
from pathlib import Path
from typing import Any
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoe.data.audio import HOP_LENGTH, N_SAMPLES, SAMPLE_RATE, log_mel_spectrogram, positions, window
from jaxmoe.data.text import Tokenizer
from jaxmoe.model.moe import MoEWhisper, make_moe, one_lora, resolve_dtype
from jaxmoe.model.personal import widened
from jaxmoe.model.whisper import Whisper


class Recogniser:
    """A bare Whisper, which hears its whole window of 30 s as openai/whisper does.

    Args:
      name: for people and for the JSON output.
      params: {"encoder", "decoder"}; they are put on the device in the model's dtype.
    """

    pads_features = True  # frames after the audio are 0, as in openai/whisper and faster-whisper, not those of silence
    short_timestamps = True  # whether recordings of one window are decoded with timestamps, as longer ones always are
    invents_on_silence = False  # whether what it writes where no speech is heard is withheld, and not only flagged

    def __init__(self, name: str, model: Whisper, params: Any, tokenizer: Tokenizer) -> None:
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.params = jax.device_put(jax.tree.map(lambda x: jnp.asarray(x, model.dtype), params))

    def window(self, num_samples: int) -> int:
        """Samples to which recordings of up to `num_samples` are padded."""
        del num_samples
        return N_SAMPLES

    def log_mel(self, samples: np.ndarray, num_samples: np.ndarray) -> jax.Array:
        """Input features of windows [B, n] padded with zeros -> [B, M, n / 160]."""
        mel = log_mel_spectrogram(samples, self.model.dims.n_mels)
        return _clear_padding(mel, num_samples // HOP_LENGTH) if self.pads_features else mel

    def encode(self, mel: jax.Array, num_samples: np.ndarray) -> tuple[jax.Array, jax.Array]:
        """Latents [B, S, D] and the embedding e [B, D], the mean over the positions that hold audio.

        Args:
          mel: [B, M, N].
          num_samples: [B], the samples of each window that are sound and not padding.
        """
        weights = _within(num_samples, mel.shape[2] // 2)
        return _encode(self.model, self.params, mel, jnp.asarray(weights, jnp.float32))

    def cross_mask(self, num_samples: np.ndarray, size: int) -> np.ndarray | None:
        """Which of `size` encoder positions the decoder may attend to, [B, S]; None for all."""
        del num_samples, size
        return None

    def gates(self, embedding: np.ndarray | jax.Array) -> np.ndarray | None:
        """Mixing weights [B, E] of the experts for embeddings [B, D]; None without experts."""
        del embedding
        return None

    def adapt(self, embedding: np.ndarray | jax.Array) -> tuple[Any, jax.Array | None]:
        """LoRA columns as lora.nested gives them and their scales [B, K] for embeddings [B, D]; None, None if bare."""
        del embedding
        return None, None


class Adapted(Recogniser):
    """A Whisper with a run's adapters, used as they were trained: without timestamps where one window is enough.

    Args:
      params: {"gate", "shared", "experts"} of `model`.
      context, margin_s: config.embed's of the run: how its latents were made.
    """

    pads_features = False
    short_timestamps = False
    invents_on_silence = True  # it has learnt from speech alone, and no longer says that there is none

    def __init__(
        self,
        name: str,
        model: MoEWhisper,
        base: Any,
        tokenizer: Tokenizer,
        params: Any,
        *,
        context: str,
        margin_s: float,
    ) -> None:
        super().__init__(name, model.whisper, base, tokenizer)
        self.mixture, self.adapters = model, params
        self.context, self.margin_s = context, margin_s
        self._columns = model.columns(params)

    def window(self, num_samples: int) -> int:
        return window(num_samples, self.context, self.margin_s)

    def cross_mask(self, num_samples: np.ndarray, size: int) -> np.ndarray | None:
        return _within(num_samples + int(self.margin_s * SAMPLE_RATE), size)

    def _gates(self, embedding: np.ndarray | jax.Array) -> jax.Array:
        return self.mixture.gates(self.mixture.gate_logits(self.adapters, jnp.asarray(embedding)))

    def gates(self, embedding: np.ndarray | jax.Array) -> np.ndarray | None:
        return np.asarray(self._gates(embedding)) if self.mixture.num_experts else None

    def adapt(self, embedding: np.ndarray | jax.Array) -> tuple[Any, jax.Array | None]:
        return self._columns, self.mixture.scales(self._gates(embedding))


def _within(num_samples: np.ndarray, size: int) -> np.ndarray:
    """Which of `size` encoder positions lie within the first `num_samples` [B] -> [B, S]."""
    return np.arange(size)[None, :] < positions(np.maximum(num_samples, 1))[:, None]


@jax.jit
def _clear_padding(mel: jax.Array, frames: jax.Array) -> jax.Array:
    return jnp.where(jnp.arange(mel.shape[2])[None, None] < frames[:, None, None], mel, 0.0)


@functools.partial(jax.jit, static_argnames="model")
def _encode(model: Whisper, params: Any, mel: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    latents, depths = model.apply(
        {"params": params}, mel, weights, method=lambda whisper, *args: whisper.encoder(*args)
    )
    return latents, depths[:, -1, 0]


def load_system(model: str | Path, checkpoint: Path | None = None, speaker: str = "") -> Recogniser:
    """The recogniser of a Whisper by name or folder, or of a run's workdir, whose backbone then wins over `model`.

    speaker: of a run, somebody whom its phase personalize has adapted to.

    Raises:
      ValueError: if the model is unknown or the folder holds no trained run, or nothing of that speaker.
    """
    from jaxmoe.model.load import load_whisper

    if checkpoint is not None:
        return _load_run(Path(checkpoint), speaker)
    if speaker:
        raise ValueError(f"--speaker={speaker}: give the run with its adaptation as --checkpoint=DIR too.")
    dims, params, tokenizer = load_whisper(model)
    return Recogniser(str(model), Whisper(dims, jnp.dtype(resolve_dtype("auto"))), params, tokenizer)


def personal_folder(workdir: Path, speaker: str) -> Path:
    """Where a run keeps what it adapted to a speaker: letters, digits, - and _; a hash where others occur."""
    plain = "".join(c if c.isalnum() or c in "-_" else "_" for c in speaker)
    name = plain if plain == speaker else f"{plain}-{zlib.crc32(speaker.encode()):08x}"
    return workdir / "personalize" / name


def _load_run(workdir: Path, speaker: str) -> Recogniser:
    """The mixture of a run, or its one LoRA where that is all that was trained."""
    from jaxmoe.checkpoint import load_params
    from jaxmoe.model.load import load_whisper

    trained = [p for p in ("joint", "baseline") if (workdir / p / "params").is_dir()]
    if not trained or not (workdir / "config.json").exists():
        raise ValueError(
            f"--checkpoint={workdir}: no trained run; expected config.json and joint/params or baseline/params, "
            "which python -m jaxmoe.launch makes."
        )
    config = json.loads((workdir / "config.json").read_text())["config"]
    fields = dict(config["model"])
    backbone, _ = fields.pop("backbone"), fields.pop("second")
    dims, base, tokenizer = load_whisper(backbone)
    model = make_moe(dims, **fields)
    if trained[0] == "baseline":
        model = one_lora(model, config["baseline"]["rank"])
    folder = workdir / trained[0]
    if speaker:
        model, folder = widened(model, config["personalize"]["rank"]), personal_folder(workdir, speaker)
        if not folder.is_dir():
            known = ", ".join(sorted(p.name for p in folder.parent.glob("*/"))) or "nobody"
            raise ValueError(
                f"--speaker={speaker}: {workdir} is adapted to {known}; run --phase=personalize for this speaker."
            )
    params = load_params(folder / "params", jax.eval_shape(model.init, jax.random.key(0), base))
    name, embed = f"{workdir.name}/{folder.name}", config["embed"]
    made = {k: embed[k] for k in ("context", "margin_s")}
    return Adapted(name, model, base, tokenizer, params, **made)
