"""A recogniser ready to use: Whisper, its tokenizer, and the adapters of a run where there are any."""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoe.data.audio import (
    HOP_LENGTH,
    N_SAMPLES,
    SAMPLE_RATE,
    load_audio,
    log_mel_spectrogram,
    pad_or_trim,
    positions,
    window,
)
from jaxmoe.data.text import Tokenizer
from jaxmoe.model import offsets
from jaxmoe.model.moe import MoEWhisper, make_moe, one_lora, resolve_dtype
from jaxmoe.model.whisper import Whisper

SPEECH = Path(__file__).parent / "data" / "demo" / "audio" / "af_heart" / "shared-01.opus"  # any short one would do
SPEECH_S = 3.9  # at most as much of it: less than the shortest of WINDOWS_S
FOLDERS = {"moe-encoder": "encoder", "moe": "joint", "lora": "baseline", "moe-risk": "cascade/risk"}  # of a workdir
STRIDE = 10  # encoder positions of padding that one stands for


class Recogniser:
    """A bare Whisper.

    Args:
      name: for people and for the JSON output.
      params: {"encoder", "decoder"}; they are put on the device in the model's dtype.
      exact: computes the whole window of 30 s, as openai/whisper does. Otherwise the encoder computes the recording
        alone: it hears the padding behind it as another recording of speech left it in each layer, and of what comes
        out there the decoder sees every STRIDE-th position, counting for its neighbours too.
    """

    pads_features = True  # frames after the audio are 0, as in openai/whisper and faster-whisper, not those of silence
    short_timestamps = True  # whether recordings of one window are decoded with timestamps, as longer ones always are
    invents_on_silence = False  # whether what it writes where no speech is heard is withheld, and not only flagged

    def __init__(self, name: str, model: Whisper, params: Any, tokenizer: Tokenizer, *, exact: bool = True) -> None:
        self.name, self.model, self.tokenizer, self.exact = name, model, tokenizer, exact
        self.params = jax.device_put(jax.tree.map(lambda x: jnp.asarray(x, model.dtype), params))

    def window(self, num_samples: int) -> int:
        """Samples to which recordings of up to `num_samples` are padded."""
        return N_SAMPLES if self.exact else window(num_samples, "trimmed", 0.0)

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
        padding = None if self.exact or weights.shape[1] >= self.model.dims.n_audio_ctx else self._padding
        return _encode(self.model, self.params, mel, weights.astype(np.float32), padding)

    @functools.cached_property
    def exactly(self) -> "Recogniser":
        """The same, hearing whole windows."""
        return Recogniser(self.name, self.model, self.params, self.tokenizer)

    @functools.cached_property
    def _padding(self) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """Keys and values [L, 1500, D] of the encoder for some speech and padding, and its latents [1500, D]."""
        samples = load_audio(SPEECH)[None, : int(SPEECH_S * SAMPLE_RATE)]
        lengths = np.array([samples.shape[1]])
        return _with_keys(self.model, self.params, self.log_mel(pad_or_trim(samples), lengths))

    def cross_mask(self, num_samples: np.ndarray, size: int) -> np.ndarray | None:
        """What is said of the latents of windows of `size` positions to the decoder's attention: a mask [B, S] as
        attention.masked takes it; None if nothing."""
        total = self.model.dims.n_audio_ctx
        if self.exact or size >= total:
            return None
        counts = np.concatenate([np.zeros(size), np.full(len(_every(size, total)), np.log(STRIDE))])
        return np.tile(counts.astype(np.float32), (len(num_samples), 1))

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
        super().__init__(name, model.whisper, base, tokenizer)  # exact: its own context is what it was trained on
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


def _every(size: int, total: int) -> np.ndarray:
    """The encoder positions from `size` on that stand for STRIDE of them."""
    return np.arange(size + STRIDE // 2, total, STRIDE)


@functools.partial(jax.jit, static_argnames="model")
def _encode(
    model: Whisper, params: Any, mel: jax.Array, weights: jax.Array, padding: Any
) -> tuple[jax.Array, jax.Array]:
    """padding: None, or what _with_keys gives, of which the positions behind `mel` count."""
    size, run = mel.shape[2] // 2, lambda whisper, *args: whisper.encoder(*args)
    if padding is None:
        latents, depths = model.apply({"params": params}, mel, weights, method=run)
        return latents, depths[:, -1, 0]
    keys, behind = padding
    keys = jax.tree.map(lambda x: x[:, size:], keys)
    latents, depths = model.apply({"params": params}, mel, weights, keys, method=run)
    behind = behind[_every(size, len(behind))]
    behind = jnp.broadcast_to(behind[None], (len(latents), *behind.shape))
    return jnp.concatenate([latents, behind], axis=1), depths[:, -1, 0]


@functools.partial(jax.jit, static_argnames="model")
def _with_keys(model: Whisper, params: Any, mel: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Of one recording, mel [1, M, 3000]: the encoder's keys and values [L, 1500, D], and its latents [1500, D]."""
    run = lambda whisper: whisper.encoder(mel)[0]
    latents, sown = model.apply({"params": params}, method=run, mutable=["attention"])
    ((k, v),) = sown["attention"]["encoder"]["blocks"]["kv"]
    return (k[:, 0], v[:, 0]), latents[0]


def load_system(
    model: str | Path,
    checkpoint: Path | None = None,
    speaker: str = "",
    system: str = "",
    *,
    exact: bool = True,
) -> Recogniser:
    """The recogniser of a Whisper by name or folder, or of a run's workdir, whose backbone then wins over `model`.

    exact: as Recogniser's; a run's context is its own.
    speaker, system: of a run, as read_run's.

    Raises:
      ValueError: if the model is unknown or the folder holds no trained run, or nothing of that speaker.
    """
    from jaxmoe.model.load import load_whisper

    if checkpoint is not None:
        return _load_run(Path(checkpoint), speaker, system)
    for option, value in (("speaker", speaker), ("system", system)):
        if value:
            raise ValueError(f"--{option}={value}: give the run that has it as --checkpoint=DIR too.")
    dims, params, tokenizer = load_whisper(model)
    return Recogniser(str(model), Whisper(dims, jnp.dtype(resolve_dtype("auto"))), params, tokenizer, exact=exact)


def _record(workdir: Path, phase: str) -> dict[str, Any]:
    """Of a phase, or of one of the folders that it fills."""
    phase = phase.partition("/")[0]
    path = workdir / phase / "phase.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def follows(workdir: Path, later: str, earlier: str) -> bool:
    """Whether a phase was done with the settings, and from the result, that an earlier one has now."""
    mine, theirs = _record(workdir, later), _record(workdir, earlier)
    if not mine.get("done") or not theirs:
        return False
    same = all(mine["settings"].get(k) == v for k, v in theirs["settings"].items())
    made = theirs.get("result")
    return same and mine.get("inputs", {}).get(earlier, made) == made


def encoder_rank(workdir: Path, phase: str = "encoder") -> int | None:
    """The rank of the encoder's LoRA that a phase has trained, `encoder` or after it `cascade`; None where that was not
    done for the mixture that is there."""
    settings = _record(workdir, phase)["settings"] if follows(workdir, phase, "joint") else {}
    return settings["encoder"]["rank"] if "encoder" in settings else None


def behind_encoder(workdir: Path, phase: str) -> bool:
    """Whether a phase went on from the adapted encoder."""
    return "encoder" in _record(workdir, phase).get("settings", {})


def moved(folder: Path, model: MoEWhisper, params: Any, base: Any, rank: int = 0) -> tuple[Any, Any]:
    """A mixture's parameters and its base with what is in FOLDER/params added: of phase personalize or, with its rank,
    encoder."""
    from jaxmoe.checkpoint import load_params

    like = jax.eval_shape(functools.partial(offsets.init, model, rank=rank), base)
    return offsets.compose(params, base, load_params(folder / "params", like))


def personal_folder(workdir: Path, speaker: str) -> Path:
    """Where a run keeps what it adapted to a speaker: letters, digits, - and _; a hash where others occur."""
    plain = "".join(c if c.isalnum() or c in "-_" else "_" for c in speaker)
    name = plain if plain == speaker else f"{plain}-{zlib.crc32(speaker.encode()):08x}"
    return workdir / "personalize" / name


class Run(NamedTuple):
    """What was trained in a workdir."""

    name: str  # workdir/phase, for people
    settings: dict[str, Any]  # of its phase.json: group -> fields
    model: MoEWhisper
    base: Any  # Whisper's parameters, float32, with what adapts the encoder
    params: Any  # of `model`
    tokenizer: Tokenizer
    own_encoder: bool  # whether the encoder is not Whisper's any more


def read_run(workdir: Path, speaker: str = "", system: str = "") -> Run:
    """What a run has trained, on the host.

    Args:
      speaker: somebody whom its phase personalize has adapted to.
      system: one of FOLDERS; if not given the mixture, with its adapted encoder where it has one, else the LoRA.

    Raises:
      ValueError: there is no such thing in `workdir`.
    """
    from jaxmoe.checkpoint import load_params
    from jaxmoe.model.load import load_whisper

    adapters, adaptation = _folders(workdir, speaker, system)
    settings = _record(workdir, adapters)["settings"]  # not config.json, which is of the last command
    fields = dict(settings["model"])
    dims, base, tokenizer = load_whisper(fields.pop("backbone"))
    model = make_moe(dims, **fields)
    if adapters == "baseline":
        model = one_lora(model, settings["baseline"]["rank"])
    folder = workdir / adapters
    params = load_params(folder / "params", jax.eval_shape(model.init, jax.random.key(0), base))
    if adaptation:
        folder = workdir / adaptation
        params, base = moved(folder, model, params, base, encoder_rank(workdir, adaptation) or 0)
    if speaker:
        folder = personal_folder(workdir, speaker)
        params, base = moved(folder, model, params, base)
    name = f"{workdir.name}/{folder.name}"
    return Run(name, settings, model, base, params, tokenizer, own_encoder=folder != workdir / adapters)


def _folders(workdir: Path, speaker: str, system: str) -> tuple[str, str]:
    """The folders of a run's adapters, and of the encoder's adaptation ("" for none), for what read_run is asked for.

    Raises: ValueError.
    """
    if speaker and system:
        raise ValueError(f"--speaker={speaker} is heard with what was adapted to them; leave --system={system} out.")
    if speaker:
        return "joint", "encoder" if _personal_start(workdir, speaker) == "encoder" else ""
    there = {name: x for name, x in FOLDERS.items() if (workdir / x / "params").is_dir() and _record(workdir, x)}
    if not {"moe", "lora"} & set(there):
        raise ValueError(
            f"--checkpoint={workdir}: no trained run; expected joint or baseline with params and phase.json in it, "
            "which python -m jaxmoe.launch makes."
        )
    if not system:
        if "moe" not in there:
            return "baseline", ""
        return "joint", "encoder" if encoder_rank(workdir) is not None else ""
    folder = FOLDERS[system]
    phase = folder.partition("/")[0]
    if system not in there:
        raise ValueError(
            f"--system={system}: {workdir} has no {folder}/params; run --phase={phase}, or take one of "
            f"{', '.join(there)}."
        )
    if not behind_encoder(workdir, folder):
        return folder, ""
    if encoder_rank(workdir, folder) is None:
        raise ValueError(
            f"--system={system}: {workdir / folder} goes with another mixture than {workdir / 'joint'} holds; run "
            f"--phase={phase} again."
        )
    return "joint", folder


def personal_start(workdir: Path) -> tuple[str, bool]:
    """The phase whose model was adapted to people, and whether it is the one that is there."""
    start = "encoder" if behind_encoder(workdir, "personalize") else "joint"
    return start, follows(workdir, "personalize", start) and (start == "joint" or encoder_rank(workdir) is not None)


def _personal_start(workdir: Path, speaker: str) -> str:
    """The phase whose model was adapted to a speaker. Raises ValueError where that is not the one that is there."""
    folder = personal_folder(workdir, speaker)
    if not folder.is_dir():
        known = ", ".join(sorted(p.name for p in folder.parent.glob("*/"))) or "nobody"
        raise ValueError(
            f"--speaker={speaker}: {workdir} is adapted to {known}; run --phase=personalize for this speaker."
        )
    start, current = personal_start(workdir)
    if not current:
        raise ValueError(
            f"--speaker={speaker}: {folder} was adapted from another model than {workdir / start} holds; run "
            "--phase=personalize again."
        )
    return start


def _load_run(workdir: Path, speaker: str, system: str) -> Recogniser:
    """What `read_run` finds."""
    run = read_run(workdir, speaker, system)
    made = {k: run.settings["embed"][k] for k in ("context", "margin_s")}
    return Adapted(run.name, run.model, run.base, run.tokenizer, run.params, **made)
