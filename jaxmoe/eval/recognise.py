"""Transcripts of clips by a bare Whisper or by a run's adapters, a batch at a time."""

from collections.abc import Iterator, Sequence
import dataclasses
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from jaxmoe import weights
from jaxmoe.checkpoint import load_params
from jaxmoe.data.embeddings import Embeddings
from jaxmoe.eval.systems import Clip, NotRun, Part
from jaxmoe.model.moe import one_lora
from jaxmoe.system import Adapted, Recogniser, behind_encoder, encoder_rank, moved
from jaxmoe.train.setup import Backbone, embeddings_folder, load_backbone, load_posterior
from jaxmoe.transcription import transcribe
from jaxmoe.windows import TranscribeOptions, decode_latents

Row = dict[str, Any]


def bare(config: ConfigDict, workdir: Path, part: Part, clips: Sequence[Clip]) -> Iterator[list[Row]]:
    """A Whisper as anybody would run it: windows of 30 s, timestamps, fallback. `part.groups[0]` names it."""
    del workdir
    group, field = part.groups[0].split(".")
    name = config[group][field]
    if not name:
        raise NotRun(f"config.{part.groups[0]} names no Whisper")
    try:
        backbone = load_backbone(config, name)
    except weights.WeightsError as error:
        raise NotRun(f"the weights of config.{part.groups[0]}={name!r} are not at hand: {error}") from error
    model = Recogniser(backbone.name, backbone.model.whisper, backbone.base, backbone.tokenizer)
    yield from from_audio(model, clips, _options(config))


def adapted(
    config: ConfigDict, workdir: Path, part: Part, clips: Sequence[Clip], language: str = "en"
) -> Iterator[list[Row]]:
    """The backbone with the adapters in WORKDIR/<part.reads[0]>; it reads latents where `embed` has made them."""
    backbone, model = _adapted(config, workdir, part.reads[0])
    embeddings = Embeddings(embeddings_folder(workdir, backbone.name, "evaluation"))
    options = dataclasses.replace(_options(config), language=language)
    given = model.mixture.routing == "given"
    posterior = load_posterior(workdir, config.model.num_experts, fitted=False) if given else None
    yield from from_latents(model, embeddings, [c for c in clips if c.id in embeddings.row], options, posterior)
    yield from from_audio(model, [c for c in clips if c.id not in embeddings.row], options)


def encoder_adapted(config: ConfigDict, workdir: Path, part: Part, clips: Sequence[Clip]) -> Iterator[list[Row]]:
    """The mixture behind the encoder of phase `encoder`, from the audio: the latents on disk are the frozen one's.

    Raises: NotRun where that phase was for another mixture.
    """
    yield from _behind(config, workdir, "encoder", "encoder", clips)


def retrained(config: ConfigDict, workdir: Path, part: Part, clips: Sequence[Clip]) -> Iterator[list[Row]]:
    """What cascade's mode `risk` trained: the mixture or, where it went on from phase `encoder`, the encoder before it.

    Raises: NotRun.
    """
    part = _mode(workdir, part, "risk")
    if behind_encoder(workdir, "cascade"):
        yield from _behind(config, workdir, "cascade", part.reads[0], clips)
    else:
        yield from adapted(config, workdir, part, clips)


def _behind(
    config: ConfigDict, workdir: Path, phase: str, folder: str, clips: Sequence[Clip]
) -> Iterator[list[Row]]:
    if (rank := encoder_rank(workdir, phase)) is None:
        raise NotRun(f"the encoder was adapted for another mixture; run --phase={phase} again")
    _, model = _adapted(config, workdir, "joint", (folder, rank))
    yield from from_audio(model, clips, _options(config))


def distilled(config: ConfigDict, workdir: Path, part: Part, clips: Sequence[Clip]) -> Iterator[list[Row]]:
    """The mixture after cascade's mode `distill`: what it says is German. Raises: NotRun."""
    for rows in adapted(config, workdir, _mode(workdir, part, "distill"), clips, language="de"):
        yield [{**row, "hypothesis": "", "translation": row["hypothesis"]} for row in rows]


def _mode(workdir: Path, part: Part, mode: str) -> Part:
    folder = f"{part.reads[0]}/{mode}"
    if not (workdir / folder / "params").is_dir():
        raise NotRun(f"--phase=cascade has not been run with config.cascade.mode={mode!r}")
    return dataclasses.replace(part, reads=(folder, *part.reads[1:]))


def _adapted(
    config: ConfigDict, workdir: Path, phase: str, encoder: tuple[str, int] | None = None
) -> tuple[Backbone, Adapted]:
    """The backbone with the adapters of a phase; encoder: the folder of what moves its encoder too, and its rank."""
    backbone = load_backbone(config)
    model = one_lora(backbone.model, config.baseline.rank) if phase == "baseline" else backbone.model
    like = jax.eval_shape(model.init, jax.random.key(0), backbone.base)
    params = load_params(workdir / phase / "params", like)
    base = backbone.base
    if encoder is not None:
        params, base = moved(workdir / encoder[0], model, params, base, encoder[1])
    made = {name: config.embed[name] for name in ("context", "margin_s")}
    return backbone, Adapted(phase, model, base, backbone.tokenizer, params, **made)


def _options(config: ConfigDict) -> TranscribeOptions:
    c = config.evaluate
    return TranscribeOptions(
        beam_size=c.beam_size, best_of=1, batch_size=c.batch_size, temperatures=tuple(c.temperatures)
    )


def from_latents(
    model: Adapted,
    embeddings: Embeddings,
    clips: Sequence[Clip],
    options: TranscribeOptions,
    posterior: dict[str, np.ndarray] | None = None,
) -> Iterator[list[Row]]:
    """Clips of one window, from their stored latents, in order of length; `posterior` routes where routing is given."""
    ids = sorted((c.id for c in clips), key=lambda id_: embeddings.length(embeddings.row[id_]))
    for start in range(0, len(ids), options.batch_size):
        batch = ids[start : start + options.batch_size]
        rows = [embeddings.row[i] for i in batch]
        latents, mask = pad([embeddings.latents(r) for r in rows])
        embedding = embeddings.pooled[rows] if posterior is None else np.stack([posterior[i] for i in batch])
        windows = decode_latents(model, latents, mask, embedding, options)
        gates = model.gates(embedding)
        yield [
            {"id": id_, **window, "gates": None if gates is None else gates[i].tolist()}
            for i, (id_, window) in enumerate(zip(batch, windows, strict=True))
        ]


def pad(latents: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Latents [S', D] of several utterances -> [B, S, D] and mask [B, S], S a multiple of 100 so that few compile."""
    size = -(-max(map(len, latents)) // 100) * 100
    padded = np.zeros((len(latents), size, latents[0].shape[-1]), np.float32)
    mask = np.zeros((len(latents), size), bool)
    for i, h in enumerate(latents):
        padded[i, : len(h)], mask[i, : len(h)] = h, True
    return padded, mask


def from_audio(model: Recogniser, clips: Sequence[Clip], options: TranscribeOptions) -> Iterator[list[Row]]:
    """Window by window from the audio: bare Whispers, recordings over 30 s, and those without stored latents."""
    for progress in transcribe(model, [clip.read for clip in clips], options):
        if progress.error is not None:
            raise progress.error
        if progress.transcript is not None:
            text = progress.transcript
            figures: Row = {"avg_logprob": None, "compression_ratio": None, "flags": text.flags, "gates": text.gates}
            if withheld := " ".join(s.withheld for s in text.segments if s.withheld):
                figures["withheld"] = withheld
            yield [{"id": clips[progress.index].id, "hypothesis": text.text, **figures}]
