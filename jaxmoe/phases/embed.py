"""Runs the frozen encoder once over every recording.

Reads   WORKDIR/corpus
Writes  WORKDIR/embeddings/<backbone>/<split>/  latents and pooled depths (data/embeddings.py)
        WORKDIR/embeddings/<backbone>/<split>/windows.jsonl  recordings over 30 s of train and validation, cut into
                                                windows with their part of the transcript; evaluation has none: there
                                                they are transcribed whole, window by window
"""

from collections.abc import Sequence
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from jaxmoe import sharding
from jaxmoe.alignment import Aligner
from jaxmoe.data import nuisance, prepared
from jaxmoe.data.audio import (
    N_SAMPLES,
    SAMPLE_RATE,
    SAMPLES_PER_POSITION,
    log_mel_spectrogram,
    loud_positions,
    positions,
    window,
)
from jaxmoe.data.embeddings import (
    SHARD_ROWS,
    VARIANTS,
    append_windows,
    embedded_ids,
    load_windows,
    next_shard,
    with_windows,
    write_shard,
    write_variants,
)
from jaxmoe.model.whisper import Whisper, moments
from jaxmoe.system import Recogniser
from jaxmoe.train.setup import Backbone, embeddings_folder, load_backbone

VARIANT_SAMPLES = 12 * SAMPLE_RATE  # longer recordings tell no more of channel and voice


@functools.partial(jax.jit, static_argnames=("model", "frames"))
def encode(
    model: Whisper, base: dict, audio: jax.Array, samples: jax.Array, frames: str = "audio"
) -> tuple[jax.Array, jax.Array]:
    """Audio [B, n] (zero-padded), true lengths [B] -> latents [B, n / 320, D], depths [B, L + 2, 2, D].

    frames: "audio" pools all that was recorded, "speech" what is loud. The last depth, the gate's, is always of all.
    """
    mel = log_mel_spectrogram(audio, model.dims.n_mels)
    at = jnp.arange(audio.shape[1] // SAMPLES_PER_POSITION)
    weights = (at[None] < -(-samples[:, None] // SAMPLES_PER_POSITION)).astype(jnp.float32)
    run = lambda m, *args: m.encoder(*args)
    if frames not in ("audio", "speech"):
        raise ValueError(f"config.embed.frames={frames!r}: expected audio or speech.")
    if frames == "audio":
        return model.apply({"params": base}, mel, weights, method=run)
    latents, depths = model.apply({"params": base}, mel, weights * loud_positions(mel), method=run)
    return latents, depths.at[:, -1].set(moments(latents, weights))


def embed_rows(
    whisper: Whisper,
    base: dict,
    sounds: Sequence[np.ndarray],
    *,
    batch_size: int,
    context: str,
    margin_s: float,
    frames: str = "audio",
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Recordings of up to 30 s, float [n] -> latents kept of each (the audio's positions plus the margin) [S', D]
    float16, and depths [U, L + 2, 2, D]; batched by window."""
    sizes = [window(len(x), context, margin_s) for x in sounds]
    order = sorted(range(len(sounds)), key=lambda i: (sizes[i], i))
    latents: dict[int, np.ndarray] = {}
    depths: dict[int, np.ndarray] = {}
    margin = int(margin_s * SAMPLE_RATE) // SAMPLES_PER_POSITION
    for size in sorted(set(sizes)):
        group = [i for i in order if sizes[i] == size]
        for start in range(0, len(group), batch_size):
            chosen = group[start : start + batch_size]
            audio = np.zeros((batch_size, size), np.float32)  # short last batches keep the compiled shape
            samples = np.ones(batch_size, np.int32)
            for j, i in enumerate(chosen):
                audio[j, : len(sounds[i])] = sounds[i]
                samples[j] = len(sounds[i])
            placed = (audio, samples) if mesh is None else sharding.put_batch((audio, samples), mesh)
            h, means = jax.device_get(encode(whisper, base, *placed, frames=frames))
            for j, i in enumerate(chosen):
                latents[i] = h[j, : positions(int(samples[j])) + margin].astype(np.float16)
                depths[i] = means[j]
    return [latents[i] for i in range(len(sounds))], np.stack([depths[i] for i in range(len(sounds))])


def embed_split(config: ConfigDict, workdir: Path, backbone: Backbone, split: str) -> None:
    """Embeds what is missing of a split: recordings of up to 30 s, and the windows of longer ones."""
    from tqdm import tqdm

    source, metadata = prepared.open_split(workdir, split), prepared.open_metadata(workdir, split)
    folder = embeddings_folder(workdir, backbone.name, split)
    have = embedded_ids(folder)
    if split != "evaluation":
        cut_long(backbone, source, metadata, folder)
    rows = [x for x in with_windows(metadata, folder) if x["samples"] <= N_SAMPLES and x["id"] not in have]
    if not rows and not have:  # long recordings alone
        dims = backbone.model.dims
        write_shard(folder, 0, [], [], np.zeros((0, dims.n_audio_layer + 2, 2, dims.n_audio_state)))
    first = next_shard(folder)
    settings = {name: config.embed[name] for name in ("batch_size", "context", "margin_s", "frames")}
    with tqdm(total=len(rows), desc=f"embed {backbone.name} {split}", unit="utt") as bar:
        for number, start in enumerate(range(0, len(rows), SHARD_ROWS), first):
            chosen = rows[start : start + SHARD_ROWS]
            sounds = [source[x["row"]]["audio"][x["start"] :][: x["samples"]] / np.float32(32768.0) for x in chosen]
            latents, depths = embed_rows(backbone.model.whisper, backbone.base, sounds, mesh=backbone.mesh, **settings)
            write_shard(folder, number, [x["id"] for x in chosen], latents, depths)
            bar.update(len(chosen))


def cut_long(backbone: Backbone, source: Sequence[dict], metadata: Sequence[dict], folder: Path) -> None:
    """Cuts recordings over 30 s into windows, each once; they are kept in FOLDER/windows.jsonl."""
    from tqdm import tqdm

    done = load_windows(folder)
    parents = {w["parent"] for w in done}
    long = [i for i, x in enumerate(metadata) if x["samples"] > N_SAMPLES and x["id"] not in parents]
    if not long:
        return
    whisper = backbone.model.whisper
    aligner = Aligner(Recogniser(backbone.name, whisper, backbone.base, backbone.tokenizer))
    for i in tqdm(long, desc=f"cut {folder.name}", unit="utt"):
        windows = aligner.windows(source[i]["audio"].astype(np.float32) / 32768.0, metadata[i]["text"])
        done += append_windows(folder, metadata[i]["id"], [vars(w) for w in windows])
    doubtful = sum(w["agreement"] < 0.3 for w in done)
    print(
        f"{len(long)} recordings over 30 s are cut into windows ({folder / 'windows.jsonl'}); "
        f"in {doubtful} of {len(done)} the model hears little of the text."
    )


def embed_variants(config: ConfigDict, workdir: Path, backbone: Backbone) -> None:
    """Embeds some of the pre-training sample through other channels and in other voices (data/nuisance.py)."""
    from tqdm import tqdm

    folder, draws = embeddings_folder(workdir, backbone.name, "train").parent, config.embed.variant_draws
    source, metadata = prepared.open_split(workdir, "train"), prepared.open_metadata(workdir, "train")
    short = [i for i, x in enumerate(metadata) if x["pretrain"] and x["samples"] <= VARIANT_SAMPLES]
    chosen = np.random.default_rng(config.seed).permutation(short)[: config.embed.variant_clips]
    if (folder / VARIANTS).exists() or not len(chosen):
        return
    sets: dict[str, list[np.ndarray]] = {"channel": [], "voice": []}
    for number, i in enumerate(tqdm(chosen, desc=f"embed {backbone.name} variants", unit="utt")):
        samples = source[int(i)]["audio"].astype(np.float32) / 32768.0
        heard, said = nuisance.other_channels(samples, draws, number), nuisance.other_voices(samples, draws, number)
        said = [samples, *heard, *said]
        audio = np.zeros((len(said), window(len(samples), config.embed.context, config.embed.margin_s)), np.float32)
        for row, x in zip(audio, said, strict=True):
            row[: len(x)] = x
        placed = jax.device_put((audio, np.full(len(said), len(samples), np.int32)), sharding.replicated(backbone.mesh))
        made = encode(backbone.model.whisper, backbone.base, *placed, frames=config.embed.frames)
        depths = np.asarray(made[1])  # [1 + 2 draws, L + 2, 2, D]
        sets["channel"].append(depths[: 1 + draws])
        sets["voice"].append(np.concatenate([depths[:1], depths[1 + draws :]]))
    write_variants(folder, **{name: np.stack(x) for name, x in sets.items()})


def run(config: ConfigDict, workdir: Path) -> None:
    """Embeds all splits with the run's backbone."""
    backbone = load_backbone(config)
    embed_variants(config, workdir, backbone)
    for split in ("train", "validation", "evaluation"):
        embed_split(config, workdir, backbone, split)
