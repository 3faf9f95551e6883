"""Adapts the recogniser to one person from a few recordings: a gate bias, and the encoder's biases and norms.

Reads   WORKDIR/corpus, WORKDIR/embeddings (which recordings there are), WORKDIR/joint/params, WORKDIR/encoder/params
        where the configuration has that phase
Writes  WORKDIR/personalize/<speaker>/params            the person's own offsets (model/offsets.py)
        WORKDIR/personalize/<speaker>/hypotheses.jsonl  the speaker's other recordings, before and after
        WORKDIR/personalize/figures.json                WER before and after, over all speakers

Every speaker of the evaluation split gives config.personalize.shots recordings and is judged on the others; one who has
no more than that is adapted and not judged. Some of the recordings given decide after how many steps training ends, so
that it does not only learn their words. Speakers that are done are not done again.
"""

from collections.abc import Sequence
import functools
import json
import os
from pathlib import Path
from typing import Any
import zlib

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax

from jaxmoe.checkpoint import load_params, save_params
from jaxmoe.data import lineage, prepared
from jaxmoe.data.audio import SAMPLES_PER_POSITION, window
from jaxmoe.data.batches import Utterances, collate
from jaxmoe.eval import bootstrap, wer
from jaxmoe.model import offsets
from jaxmoe.model.moe import MoEWhisper
from jaxmoe.phases.encoder import Heard, hear, nll, sounds_of
from jaxmoe.system import Adapted, moved, personal_folder
from jaxmoe.train import losses, optimizer
from jaxmoe.train.setup import Backbone, load_backbone, load_utterances
from jaxmoe.transcription import transcribe
from jaxmoe.windows import TranscribeOptions

PATIENCE = 4  # steps
MIN_GAIN = 0.05  # of the loss on recordings left out, which are few: less is chance

Row = dict[str, Any]


def make_step(model: MoEWhisper, tx: optax.GradientTransformation) -> Any:
    """(personal, opt_state, params, base, heard, kept [B]) -> (personal, opt_state, nats a token [2]).

    Minimised is the cross-entropy, through encoder and mixture, of the utterances that are kept; given back are theirs
    and the others', before the step.
    """

    def loss_fn(mine: Any, params: Any, base: Any, heard: Heard, kept: jax.Array) -> tuple[jax.Array, jax.Array]:
        of_each, weights = nll(model, (params, base), mine, heard), heard.batch.weights
        mean = lambda part: losses.mean_nll(of_each * part, weights * part[:, None])
        return mean(kept), jnp.stack([mean(kept), mean(1.0 - kept)])

    @jax.jit
    def step(mine: Any, opt_state: Any, params: Any, base: Any, heard: Heard, kept: jax.Array) -> tuple[Any, Any, Any]:
        grads, found = jax.grad(loss_fn, has_aux=True)(mine, params, base, heard, kept)
        updates, opt_state = tx.update(grads, opt_state, mine)
        return optax.apply_updates(mine, updates), opt_state, found

    return step


def chosen(ids: Sequence[str], shots: int, seed: int) -> tuple[list[int], list[int]]:
    """Positions of the recordings a speaker gives, and of the others; whatever the order of the files."""
    order = sorted(range(len(ids)), key=lambda i: (zlib.crc32(f"{seed}/{ids[i]}".encode()), ids[i]))
    return order[:shots], sorted(order[shots:])


class Adapter:
    """Adapts to one speaker after the other with programs compiled once for each length."""

    def __init__(self, config: ConfigDict, model: MoEWhisper, base: Any, params: Any, utterances: Utterances):
        self.c, self.embed, self.utterances = config.personalize, config.embed, utterances
        self.model, self.base, self.params = model, base, params
        self.token_size = -(-max(len(t) for t in utterances.tokens) // 8) * 8
        labels = jax.tree.map(lambda _: "train", offsets.init(model, base))
        fields = dict(lr=self.c.lr, steps=self.c.steps, warmup=1, weight_decay=0.0, clip_norm=1.0)
        self.tx = optimizer.make_tx(labels, **fields)
        self.step = make_step(model, self.tx)

    def __call__(self, rows: Sequence[int], sounds: Sequence[np.ndarray]) -> tuple[Any, int]:
        """Personal parameters from the utterances `rows`, recordings float [n] in `sounds`, and the steps that took.

        Every third recording is left out of a first training, to see after how many steps it is understood best; a
        second one takes so many on all of them. They are 0 where it is not better understood by MIN_GAIN.
        """
        number = np.arange(self.c.shots) % len(rows)  # fewer recordings repeat, so that the shape stays
        heard, left_out = self._hear(np.array(rows)[number], [sounds[i] for i in number]), number % 3 == 1
        _, seen = self._train(heard, ~left_out, self.c.steps, PATIENCE)
        steps = int(seen[:, 1].argmin())
        if not left_out.any() or seen[steps, 1] > (1 - MIN_GAIN) * seen[0, 1]:
            steps = 0
        return self._train(heard, np.ones_like(left_out), steps)[0], steps

    def _hear(self, rows: np.ndarray, sounds: Sequence[np.ndarray]) -> Heard:
        size = max(window(len(x), self.embed.context, self.embed.margin_s) for x in sounds)
        batch = collate(self.utterances, rows, size // SAMPLES_PER_POSITION, self.token_size)
        return jax.tree.map(jnp.asarray, hear(batch, sounds, size))

    def _train(self, heard: Heard, kept: np.ndarray, steps: int, patience: int = 0) -> tuple[Any, np.ndarray]:
        """Personal parameters after `steps`, and what `make_step` gave back before each [steps, 2].

        patience: ends after so many steps in which those not kept were never better understood; 0 for never.
        """
        mine, seen = offsets.init(self.model, self.base), np.zeros((0, 2))
        opt_state, by = self.tx.init(mine), jnp.asarray(kept, jnp.float32)
        for _ in range(steps):
            mine, opt_state, found = self.step(mine, opt_state, self.params, self.base, heard, by)
            seen = np.vstack([seen, found])
            if not np.isfinite(seen).all():
                raise FloatingPointError("personalize: the loss is not finite; lower config.personalize.lr.")
            if patience and len(seen) - seen[:, 1].argmin() > patience:
                break
        return mine, seen


def texts(
    config: ConfigDict, backbone: Backbone, params: Any, base: Any, sounds: Sequence[np.ndarray]
) -> list[str]:
    """What is heard in recordings, as `transcribe --speaker` hears them."""
    made = {name: config.embed[name] for name in ("context", "margin_s")}
    system = Adapted("personal", backbone.model, base, backbone.tokenizer, params, **made)
    size = config.evaluate.batch_size
    options = TranscribeOptions(
        beam_size=config.evaluate.beam_size, best_of=1, temperatures=(0.0,), batch_size=size
    )
    out = [""] * len(sounds)
    for step in transcribe(system, [functools.partial(np.asarray, x) for x in sounds], options):
        if step.error is not None:
            raise step.error
        if step.transcript is not None:
            out[step.index] = step.transcript.text
    return out


def figures(lines: Sequence[Row]) -> Row:
    """WER before and after with the paired difference over speakers."""
    reference = [x["reference"] for x in lines]
    index, count = bootstrap.speaker_index([x["speaker"] for x in lines])

    def sums(key: str) -> np.ndarray:
        counts = wer.score(reference, [x[key] for x in lines])
        return bootstrap.speaker_sums(np.stack([counts.errors, counts.words], 1), index, count)

    before, after = sums("before"), sums("after")
    difference = bootstrap.paired(after, before, wer.rate)
    rates = [float(wer.rate(s.sum(0))) for s in (before, after)]
    return {
        "speakers": count,
        "utterances": len(lines),
        "wer_before": rates[0],
        "wer_after": rates[1],
        "difference": difference.difference,
        "difference_ci95": difference.ci95,
        "adapted_speakers": len({x["speaker"] for x in lines if x["steps"]}),
        "better_speakers": int((wer.rate(after) < wer.rate(before)).sum()),
        "worse_speakers": int((wer.rate(after) > wer.rate(before)).sum()),
    }


def run(config: ConfigDict, workdir: Path) -> None:
    from tqdm import tqdm

    c, folder = config.personalize, workdir / "personalize"
    backbone = load_backbone(config)
    model, base = backbone.model, backbone.base
    params = load_params(workdir / "joint" / "params", jax.eval_shape(model.init, jax.random.key(0), base))
    start = workdir / ("encoder" if config.encoder.steps else "joint")
    if config.encoder.steps:
        print("  behind an encoder adapted to others of the same disorder this did harm (docs/method.md, 5)")
        params, base = moved(start, model, params, base, config.encoder.rank)
    utterances = load_utterances(config, workdir, backbone, "evaluation")
    about = prepared.open_metadata(workdir, "evaluation")
    at = {x["id"]: i for i, x in enumerate(about)}  # of recordings; windows of longer ones are not there
    ids = [utterances.embeddings.ids[r] for r in utterances.rows]
    speakers: dict[str, list[int]] = {}
    for i, id_ in enumerate(ids):
        if id_ in at:
            speakers.setdefault(about[at[id_]]["speaker"], []).append(i)
    adapter = Adapter(config, model, base, params, utterances)
    sound = sounds_of(config, workdir, utterances, "evaluation")
    lines: list[Row] = []
    for speaker, members in tqdm(sorted(speakers.items()), desc="personalize", unit="speaker"):
        file = personal_folder(workdir, speaker) / "hypotheses.jsonl"
        if not file.exists():
            parts = chosen([ids[i] for i in members], c.shots, config.seed)
            given, rest = ([members[i] for i in part] for part in parts)
            mine, steps = adapter(given, [sound(i) for i in given])
            lineage.write(file.parent, [speaker], start)
            save_params(file.parent / "params", mine)
            sounds, own = [sound(i) for i in rest], offsets.compose(params, base, mine)
            before = texts(config, backbone, params, base, sounds)
            after = texts(config, backbone, *own, sounds) if steps else before
            rows = [
                {"id": ids[i], "speaker": speaker, "etiology": about[at[ids[i]]]["etiology"], "steps": steps}
                | {"reference": about[at[ids[i]]]["text"], "before": b, "after": a}
                for i, b, a in zip(rest, before, after, strict=True)
            ]
            temporary = file.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in rows))
            os.replace(temporary, file)
        lines += [json.loads(line) for line in file.read_text().splitlines()]
    report(folder, lines, len(speakers), c.shots)


def report(folder: Path, lines: Sequence[Row], speakers: int, shots: int) -> None:
    """Writes and prints what the adaptation was worth."""
    if not lines:
        print(f"  adapted {speakers} speakers; none has more than {shots} recordings, so none is judged")
        return
    found = figures(lines)
    groups = sorted({x["etiology"] for x in lines})
    found["by_etiology"] = {g: figures([x for x in lines if x["etiology"] == g]) for g in groups}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "figures.json").write_text(json.dumps(found, indent=2))
    span = found["difference_ci95"]
    print(
        f"  {found['speakers']} speakers, {shots} recordings each, of use to {found['adapted_speakers']} of them:"
        f" WER {found['wer_before']:.1f} -> {found['wer_after']:.1f} (difference {found['difference']:+.1f}"
        + (f", 95 % {span[0]:+.1f} to {span[1]:+.1f})" if span else ")")
    )
