"""German straight from speech by SALMONN, before and after its training in this run."""

from collections.abc import Iterator, Sequence
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from jaxmoe.checkpoint import load_params
from jaxmoe.data.audio import N_SAMPLES, SAMPLE_RATE
from jaxmoe.data.embeddings import Embeddings
from jaxmoe.data.prompted import PROMPTS, Spoken, collate
from jaxmoe.eval.systems import Clip, NotRun, Part
from jaxmoe.model import llm_beam, lora
from jaxmoe.train.salmonn import Opened, make_spoken, open_salmonn
from jaxmoe.train.setup import embeddings_folder
from jaxmoe.weights import WeightsError

Row = dict[str, Any]


def zero_shot(config: ConfigDict, workdir: Path, part: Part, clips: Sequence[Clip]) -> Iterator[list[Row]]:
    """As it comes: a release's connector and LoRA, or, where config.salmonn.weights names none, an untrained one."""
    del part
    yield from translate(config, workdir, _open(config), clips)


def tuned(config: ConfigDict, workdir: Path, part: Part, clips: Sequence[Clip]) -> Iterator[list[Row]]:
    """With what --phase=salmonn trained; `part.reads[0]` is its folder."""
    opened = _open(config)
    params = load_params(workdir / part.reads[0] / "params", jax.eval_shape(lambda: opened.params))
    yield from translate(config, workdir, opened, clips, params)


def _open(config: ConfigDict) -> Opened:
    if not config.salmonn.llm:
        raise NotRun("config.salmonn.llm names no language model")
    try:
        return open_salmonn(config, scan=jax.default_backend() != "cpu")
    except WeightsError as error:
        raise NotRun(f"weights of config.salmonn are not at hand: {error}") from error


def translate(
    config: ConfigDict, workdir: Path, opened: Opened, clips: Sequence[Clip], params: Any = None
) -> Iterator[list[Row]]:
    """Batches of rows with German in `translation`; there is no transcript. Clips over 30 s end there, with a flag."""
    c = config.salmonn
    model, params = opened.model, opened.params if params is None else params
    folder = embeddings_folder(workdir, config.model.backbone, "evaluation")
    cached = Embeddings(folder) if config.embed.context == "trimmed" else None
    merged = jax.jit(model.merged)(opened.base, params)
    if not model.llm.scan_layers:
        lora.transpose_kernels(merged)
    prompt = jax.jit(model.prompt)
    search = functools.partial(
        llm_beam.beam_search, model.llm, merged, beams=c.beam_size, max_tokens=c.max_tokens, stop=opened.wrapping.end
    )
    for batch in _batches(opened, cached, clips, config.evaluate.batch_size):
        rows = [(spoken, PROMPTS["translation"][0], ()) for _, spoken in batch]
        rows += rows[:1] * (config.evaluate.batch_size - len(rows))  # short last batches keep the compiled shape
        size = -(-max(s.positions for s, _, _ in rows) // 100) * 100 if rows[0][0].latents else 0
        x, mask = prompt(opened.base, params, collate(rows, opened.wrapping, size, 1))
        tokens, number = map(np.asarray, search(prompt=x, mask=jnp.asarray(mask)))
        texts = [opened.tokenizer.decode(t[:n].tolist()).strip() for t, n in zip(tokens, number, strict=True)]
        yield [
            {"id": clip.id, "hypothesis": "", "translation": text, "flags": ["cut at 30 s"] * _is_long(clip)}
            for (clip, _), text in zip(batch, texts, strict=False)
        ]


def _is_long(clip: Clip) -> bool:
    return clip.duration_s > N_SAMPLES / SAMPLE_RATE


def _batches(
    opened: Opened, cached: Embeddings | None, clips: Sequence[Clip], size: int
) -> Iterator[list[tuple[Clip, Spoken]]]:
    """Clips in order of length; those with latents and those without never share a batch."""
    groups: dict[bool, list[tuple[Clip, Spoken]]] = {True: [], False: []}
    for clip in sorted(clips, key=lambda c: c.duration_s):
        row = cached.row.get(clip.id) if cached else None
        length = int(clip.duration_s * SAMPLE_RATE)
        groups[row is None].append((clip, make_spoken(cached, row, clip.read, length, opened, {})))
    for group in groups.values():
        yield from (group[i : i + size] for i in range(0, len(group), size))
