"""Adapts the mixture to one person from a few recordings: a gate bias and a small LoRA of their own.

Reads   WORKDIR/corpus, WORKDIR/embeddings, WORKDIR/joint/params
Writes  WORKDIR/personalize/<speaker>/params            mixture parameters, their shared path wider by the person's LoRA
        WORKDIR/personalize/<speaker>/hypotheses.jsonl  the speaker's other recordings, before and after
        WORKDIR/personalize/figures.json                WER before and after, over all speakers

Every speaker of the evaluation split gives config.personalize.shots recordings and is judged on the others; one who has
no more than that is adapted and not judged. Some of the recordings given decide after how many steps training ends, so
that it does not only learn their words. Speakers that are done are not done again.
"""

from collections.abc import Sequence
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
from jaxmoe.data.batches import Batch, Utterances, collate
from jaxmoe.eval import bootstrap, wer
from jaxmoe.model import personal
from jaxmoe.model.moe import MoEWhisper
from jaxmoe.system import Adapted, personal_folder
from jaxmoe.train import losses, optimizer
from jaxmoe.train.setup import Backbone, load_backbone, load_utterances
from jaxmoe.windows import TranscribeOptions, decode_latents

PATIENCE = 6  # steps
MIN_GAIN = 0.05  # of the loss on recordings left out, which are few: less is chance, and made texts worse

Row = dict[str, Any]


def make_step(model: MoEWhisper, rank: int, gate_bias: bool, tx: optax.GradientTransformation) -> Any:
    """(personal, opt_state, params, base, batch, kept [B]) -> (personal, opt_state, nats a token [2]).

    Minimised is the cross-entropy, through the mixture, of the utterances that are kept; given back are theirs and the
    others', before the step.
    """
    wide = personal.widened(model, rank)

    def loss_fn(mine: Any, params: Any, base: Any, batch: Batch, kept: jax.Array) -> tuple[jax.Array, jax.Array]:
        mine = mine if gate_bias else {**mine, "gate_bias": jax.lax.stop_gradient(mine["gate_bias"])}
        composed = personal.compose(params, mine)
        gates = wide.gates(wide.gate_logits(composed, batch.embedding))
        nll = wide.nll(base, composed, batch, gates)
        mean = lambda part: losses.mean_nll(nll * part, batch.weights * part[:, None])
        return mean(kept), jnp.stack([mean(kept), mean(1.0 - kept)])

    @jax.jit
    def step(mine: Any, opt_state: Any, params: Any, base: Any, batch: Batch, kept: jax.Array) -> tuple[Any, Any, Any]:
        (_, nll), grads = jax.value_and_grad(loss_fn, has_aux=True)(mine, params, base, batch, kept)
        updates, opt_state = tx.update(grads, opt_state, mine)
        return optax.apply_updates(mine, updates), opt_state, nll

    return step


def chosen(ids: Sequence[str], shots: int, seed: int) -> tuple[list[int], list[int]]:
    """Positions of the recordings a speaker gives, and of the others; whatever the order of the files."""
    order = sorted(range(len(ids)), key=lambda i: (zlib.crc32(f"{seed}/{ids[i]}".encode()), ids[i]))
    return order[:shots], sorted(order[shots:])


class Adapter:
    """Adapts to one speaker after the other with programs compiled once."""

    def __init__(self, config: ConfigDict, model: MoEWhisper, base: Any, params: Any, utterances: Utterances):
        c = config.personalize
        self.c, self.seed, self.utterances = c, config.seed, utterances
        self.model, self.base, self.params = model, base, params
        lengths = [utterances.embeddings.length(r) for r in utterances.rows]
        self.size = -(-max(lengths) // 50) * 50
        self.token_size = -(-max(len(t) for t in utterances.tokens) // 8) * 8
        fields = dict(lr=c.lr, steps=c.steps, warmup=1, weight_decay=c.weight_decay, clip_norm=c.clip_norm)
        start = self._start()
        self.tx = optimizer.make_tx(jax.tree.map(lambda _: "train", start), **fields)
        self.step = make_step(model, c.rank, c.gate_bias, self.tx)

    def _start(self) -> Any:
        return personal.init(self.model, self.base, jax.random.key(self.seed), self.c.rank)

    def __call__(self, rows: Sequence[int]) -> tuple[Any, int]:
        """Mixture parameters adapted to the utterances `rows`, and the steps that took.

        Every third recording is left out of a first training, to see after how many steps it is understood best; a
        second one takes so many on all of them. They are 0 where it is not better understood by MIN_GAIN.
        """
        number = np.arange(self.c.shots) % len(rows)  # fewer recordings repeat, so that the shape stays
        picked, left_out = np.array(rows)[number], number % 3 == 1
        batch = jax.tree.map(jnp.asarray, collate(self.utterances, picked, self.size, self.token_size))
        _, nll = self._train(batch, ~left_out, self.c.steps, PATIENCE)
        steps = int(nll[:, 1].argmin())
        if not left_out.any() or nll[steps, 1] > (1 - MIN_GAIN) * nll[0, 1]:
            steps = 0
        mine, _ = self._train(batch, np.ones_like(left_out), steps)
        return personal.compose(self.params, mine), steps

    def _train(self, batch: Batch, kept: np.ndarray, steps: int, patience: int = 0) -> tuple[Any, np.ndarray]:
        """Personal parameters after `steps`, and what `make_step` gave back before each [steps, 2].

        patience: ends after so many steps in which those not kept were never better understood; 0 for never.
        """
        mine, seen = self._start(), np.zeros((0, 2))
        opt_state, by = self.tx.init(mine), jnp.asarray(kept, jnp.float32)
        for _ in range(steps):
            mine, opt_state, nll = self.step(mine, opt_state, self.params, self.base, batch, by)
            seen = np.vstack([seen, nll])
            if not np.isfinite(seen).all():
                raise FloatingPointError("personalize: the loss is not finite; lower config.personalize.lr.")
            if patience and len(seen) - seen[:, 1].argmin() > patience:
                break
        return mine, seen


def hypotheses(
    config: ConfigDict, backbone: Backbone, model: MoEWhisper, params: Any, utterances: Utterances, rows: Sequence[int]
) -> list[str]:
    """Texts of the utterances `rows`."""
    embed = {name: config.embed[name] for name in ("context", "margin_s")}
    system = Adapted("personal", model, backbone.base, backbone.tokenizer, params, **embed)
    options = TranscribeOptions(beam_size=config.evaluate.beam_size, best_of=1, temperatures=(0.0,))
    out = []
    for start in range(0, len(rows), config.evaluate.batch_size):
        part = np.array(rows[start : start + config.evaluate.batch_size])
        size = -(-max(utterances.embeddings.length(r) for r in utterances.rows[part]) // 100) * 100
        batch = collate(utterances, part, size, max(len(utterances.tokens[i]) for i in part))
        out += [x["hypothesis"] for x in decode_latents(system, batch.latents, batch.mask, batch.embedding, options)]
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
    model = backbone.model
    params = load_params(workdir / "joint" / "params", jax.eval_shape(model.init, jax.random.key(0), backbone.base))
    utterances = load_utterances(config, workdir, backbone, "evaluation")
    about = {x["id"]: x for x in prepared.open_metadata(workdir, "evaluation")}
    ids = [utterances.embeddings.ids[r] for r in utterances.rows]
    speakers: dict[str, list[int]] = {}
    for i, id_ in enumerate(ids):
        if id_ in about:  # windows of longer recordings are not
            speakers.setdefault(about[id_]["speaker"], []).append(i)
    adapter, wide = Adapter(config, model, backbone.base, params, utterances), personal.widened(model, c.rank)
    lines: list[Row] = []
    for speaker, members in tqdm(sorted(speakers.items()), desc="personalize", unit="speaker"):
        file = personal_folder(workdir, speaker) / "hypotheses.jsonl"
        if not file.exists():
            given, rest = chosen([ids[i] for i in members], c.shots, config.seed)
            given, rest = [members[i] for i in given], [members[i] for i in rest]
            mine, steps = adapter(given)
            lineage.write(file.parent, [speaker], workdir / "joint")
            save_params(file.parent / "params", mine)
            before = hypotheses(config, backbone, model, params, utterances, rest)
            after = hypotheses(config, backbone, wide, mine, utterances, rest)
            rows = [
                {"id": ids[i], "speaker": speaker, "steps": steps, "reference": about[ids[i]]["text"]}
                | {"before": b, "after": a}
                for i, b, a in zip(rest, before, after, strict=True)
            ]
            temporary = file.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in rows))
            os.replace(temporary, file)
        lines += [json.loads(line) for line in file.read_text().splitlines()]
    if not lines:
        print(f"  adapted {len(speakers)} speakers; none has more than {c.shots} recordings, so none is judged")
        return
    found = figures(lines)
    (folder / "figures.json").write_text(json.dumps(found, indent=2))
    span = found["difference_ci95"]
    print(
        f"  {found['speakers']} speakers, {c.shots} recordings each, of use to {found['adapted_speakers']} of them:"
        f" WER {found['wer_before']:.1f} -> {found['wer_after']:.1f} (difference {found['difference']:+.1f}"
        + (f", 95 % {span[0]:+.1f} to {span[1]:+.1f})" if span else ")")
    )
