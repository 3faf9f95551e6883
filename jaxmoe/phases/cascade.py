"""Trains the mixture for its translation: with the translator in the loop (risk), or to say German itself (distill).

Reads   WORKDIR/embeddings, WORKDIR/joint/params; the translator of config.mt; where the configuration has phase
        `encoder`, WORKDIR/encoder/params and the audio in WORKDIR/corpus
Writes  WORKDIR/cascade/<mode>/  checkpoints, metrics.jsonl, params

risk     L = E_{y ~ P^}[1 - score(MT(y), reference)] - baseline + ce * CE(transcript), y the N-best of the model as it
         was at the last refresh, P^ its probabilities of now, renormalised. The translator is a black box behind the
         cache, so that no text is translated twice.
distill  L = CE(German | <|de|>): a multilingual decoder learns to answer English speech with German, from the
         references or from what the translator makes of the transcripts.

Trained is the mixture, on the frozen encoder's latents, with the joint phase's balance of the gate. Behind phase
`encoder`, risk goes on with what that trained instead: the encoder's adaptation, from the audio, with the mixture as it
is. distill leaves the encoder frozen.
"""

from collections.abc import Callable, Sequence
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
import numpy as np
import optax

from jaxmoe import mt
from jaxmoe.checkpoint import load_params
from jaxmoe.data import prepared
from jaxmoe.data.batches import Batch, BatchSource, Utterances, iterate
from jaxmoe.data.embeddings import with_windows
from jaxmoe.model import offsets
from jaxmoe.model.moe import MoEWhisper
from jaxmoe.phases import encoder
from jaxmoe.train import losses, optimizer, risk
from jaxmoe.train import state as states
from jaxmoe.train.loop import StepFn, fit
from jaxmoe.train.risk import NBest, RiskBatch
from jaxmoe.train.setup import (
    Backbone,
    embeddings_folder,
    load_backbone,
    load_posterior,
    load_utterances,
    make_tx,
    note_utterances,
    validation,
    watch_collapse,
)
from jaxmoe.weights import cache_folder

MODES = {"risk": ("risk",), "distill": ("distill",), "both": ("risk", "distill")}


Hear = Callable[[Any, Any, Any], tuple[Any, Any, Batch]]  # what is trained, base, batch -> adapters, Whisper, batch


def from_latents(params: Any, base: Any, batch: Batch) -> tuple[Any, Any, Batch]:
    """Of a batch that has its latents: the mixture is trained."""
    return params, base, batch


def make_step(
    model: MoEWhisper, tx: optax.GradientTransformation, *, ce: float, balance: float, hear: Hear = from_latents
) -> StepFn:
    """A step over a RiskBatch (risk + ce * cross-entropy) or a plain Batch (cross-entropy alone)."""

    def loss_fn(mine: Any, base: Any, both: RiskBatch | Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        params, base, batch = hear(mine, base, both.batch if isinstance(both, RiskBatch) else both)
        gate_logits = model.gate_logits(params, batch.embedding)  # [B, E]
        gates = model.gates(gate_logits)
        nll = losses.mean_nll(model.nll(base, params, batch, gates), batch.weights)
        metrics = {"nll": nll, "balance": losses.load_balance(gate_logits), "mean_gate": gates.mean(0)}
        loss = balance * metrics["balance"]
        if isinstance(both, RiskBatch):
            nbest, live = both.nbest, both.nbest.weights.sum(-1) > 0
            logprob = risk.sequence_logprob(model, base, params, batch, gates, nbest)
            metrics["risk"] = risk.expected(logprob, nbest.costs, live)
            metrics["cost"] = (nbest.costs * live).sum() / live.sum()
            loss += metrics["risk"] + ce * nll
        else:
            loss += nll
        return loss, {"loss": loss, **metrics}

    def step(state: states.TrainState, base: Any, batch: Any) -> tuple[states.TrainState, dict[str, jax.Array]]:
        grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, base, batch)
        active = metrics["mean_gate"] > 0  # [E], over the global batch
        return optimizer.advance(tx, state, grads, active), metrics

    return step


class Lister:
    """fit's `prepare`: adds N-best lists of the model at its last refresh, translated and judged.

    At a refresh the lists of all batches up to the next one are made, so that a translator has them at once: a model
    on this machine takes little longer for many texts than for few, a service wants few requests.
    """

    def __init__(
        self,
        backbone: Backbone,
        source: BatchSource,
        translate: risk.Translate,
        *,
        n: int,
        refresh: int,
        metric: str,
        base: Any = None,
        hear: Hear = from_latents,
        listen: Callable[[Batch], Any] = lambda batch: batch,
    ) -> None:
        self.backbone, self.source, self.translate = backbone, source, translate
        self.n, self.refresh, self.metric = n, refresh, metric
        self.base, self.hear, self.listen = backbone.base if base is None else base, jax.jit(hear), listen
        self.prompt = backbone.tokenizer.sot_sequence(language="en", task="transcribe", timestamps=False)
        self._lists: dict[int, NBest] = {}  # by step

    def __call__(self, state: states.TrainState, batch: Batch) -> RiskBatch:
        step = int(state.step)
        if step not in self._lists:
            until = min(step - step % self.refresh + self.refresh, len(self.source))
            self._lists = dict(zip(range(step, until), self._look(state.params, range(step, until)), strict=True))
        return RiskBatch(self.listen(batch), self._lists.pop(step))

    def _look(self, params: Any, steps: Sequence[int]) -> list[NBest]:
        """The lists of the batches of `steps`."""
        model, tokenizer = self.backbone.model, self.backbone.tokenizer
        texts: list[list[list[list[int]]]] = []
        references: list[str] = []
        for batch in (self.source[step] for step in steps):
            adapters, base, encoded = self.hear(params, self.base, self.listen(batch))
            texts.append(risk.search(model, base, adapters, encoded, tokenizer, self.prompt, self.n))
            references += [self.source.utterances.translations[i] for i in batch.index]
        flat = [row for rows in texts for row in rows]
        costs = risk.judge(flat, references, tokenizer, self.translate, self.metric, self.n)
        parts = np.split(costs, np.cumsum([len(rows) for rows in texts])[:-1])
        made = (risk.collate(rows, self.prompt, tokenizer.eot, self.n) for rows in texts)
        return [nbest.replace(costs=part) for nbest, part in zip(made, parts, strict=True)]


def translator(config: ConfigDict) -> mt.Translator:
    """The run's translator, behind the cache shared by all runs."""
    return mt.make(**dict(config.mt), cache_path=cache_folder() / "translations.sqlite")


def _german(config: ConfigDict, workdir: Path, split: str) -> Callable[[dict[str, Any]], str]:
    """What distillation teaches of an item of a split."""
    if config.cascade.teacher == "references":
        return lambda item: item["translation"]
    if config.cascade.teacher != "translator":
        raise ValueError(f"config.cascade.teacher={config.cascade.teacher!r}; expected references or translator.")
    items = with_windows(
        prepared.open_metadata(workdir, split), embeddings_folder(workdir, config.model.backbone, split)
    )
    texts = sorted({item["text"] for item in items})
    german = dict(zip(texts, translator(config).translate(texts), strict=True))
    return lambda item: german[item["text"]]


def check(config: ConfigDict, backbone: Backbone) -> None:
    """Raises: ValueError: for fields that do not go together."""
    c = config.cascade
    if c.mode not in MODES:
        raise ValueError(f"config.cascade.mode={c.mode!r}; expected one of {', '.join(MODES)}.")
    if c.cost not in risk.SENTENCE_SCORES:
        raise ValueError(f"config.cascade.cost={c.cost!r}; expected one of {', '.join(risk.SENTENCE_SCORES)}.")
    if c.save_every % c.refresh:
        raise ValueError(
            f"config.cascade.save_every={c.save_every} is no multiple of refresh={c.refresh}: a run continued between "
            "two refreshes would not know the model of the last one. Make it a multiple."
        )
    if "distill" in MODES[c.mode]:
        backbone.tokenizer.sot_sequence(language="de")  # an English-only model has no <|de|>


class Start(NamedTuple):
    """What a mode trains and how a batch reaches it."""

    folder: Path  # of the phase that it goes on from
    params: Any
    base: Any
    trainable: list[str]
    hear: Hear
    listen: Callable[[Batch], Any]
    evaluate: Callable[[Any], dict[str, float]]
    balance: float  # of the gate, as the phase before had it


def from_joint(config: ConfigDict, workdir: Path, backbone: Backbone, held_out: Utterances) -> Start:
    """The mixture, on the latents of the frozen encoder."""
    model, folder = backbone.model, workdir / "joint"
    params = load_params(folder / "params", jax.eval_shape(model.init, jax.random.key(0), backbone.base))
    trainable = [r"gate/.*", r"experts/.*"] + [r"shared/.*"] * bool(model.shared_rank)
    evaluate = validation(model, backbone, held_out, config.cascade.batch_size)
    listen = lambda batch: batch
    return Start(folder, params, backbone.base, trainable, from_latents, listen, evaluate, config.joint.balance)


def from_encoder(
    config: ConfigDict, workdir: Path, backbone: Backbone, said: Utterances, held_out: Utterances
) -> Start:
    """What phase `encoder` has trained, from the audio."""
    folder, size = workdir / "encoder", config.cascade.batch_size
    like = jax.eval_shape(functools.partial(offsets.init, backbone.model, rank=config.encoder.rank), backbone.base)
    params, base = load_params(folder / "params", like), encoder.mixture_of(workdir, backbone)
    listen = encoder.listener(config, encoder.sounds_of(config, workdir, said, "train"))
    evaluate = encoder.validation(config, workdir, backbone, base, held_out, size)
    hear = lambda mine, mixture, heard: encoder.encoded(backbone.model, mixture, mine, heard)
    return Start(folder, params, base, [".*"], hear, listen, evaluate, 0.0)


def train(config: ConfigDict, workdir: Path, mode: str, backbone: Backbone) -> None:
    """One mode, from the joint phase's parameters or, risk behind phase `encoder`, from that one's."""
    c, folder = config.cascade, workdir / "cascade" / mode
    said, held_out = (_utterances(config, workdir, mode, backbone, split) for split in ("train", "validation"))
    if mode == "risk" and config.encoder.steps:
        start = from_encoder(config, workdir, backbone, said, held_out)
    else:
        start = from_joint(config, workdir, backbone, held_out)
    source = BatchSource(said, batch_size=c.batch_size, steps=c.steps, seed=config.seed)
    options: dict[str, Any] = {}
    if config.model.routing == "gate":
        posterior = load_posterior(workdir, backbone.model.num_experts)
        options["watch"] = watch_collapse(posterior, config.joint.min_effective)
    if mode == "risk":
        fields = {"n": c.nbest, "refresh": c.refresh, "metric": c.cost}
        ears = {"base": start.base, "hear": start.hear, "listen": start.listen}
        options["prepare"] = Lister(backbone, source, translator(config).translate, **fields, **ears)
    tx = make_tx(c, start.params, start.trainable)
    note_utterances(folder, said, held_out, start.folder)
    fit(
        make_step(backbone.model, tx, ce=c.ce, balance=start.balance, hear=start.hear),
        states.create(start.params, tx, config.seed),
        start.base,
        iterate(source),
        folder=folder,
        steps=c.steps,
        mesh=backbone.mesh,
        log_every=c.log_every,
        save_every=c.save_every,
        evaluate=start.evaluate,
        **options,
    )


def _utterances(config: ConfigDict, workdir: Path, mode: str, backbone: Backbone, split: str) -> Utterances:
    """Those of a split that a mode trains on or is judged by. Raises ValueError where train has no German for risk."""
    options: dict[str, Any] = {}
    if mode == "distill":
        options = {"language": "de", "said": _german(config, workdir, split)}
    elif split == "train":
        items = prepared.open_metadata(workdir, "train")
        if missing := sum(not item["translation"] for item in items):
            found = f"{missing} of {len(items)} train utterances"
            raise ValueError(f"{found} have no German reference; --phase=references.")
        # Windows of long recordings have no German to judge by.
        options = {"said": lambda item: item["text"] if item["translation"] else ""}
    return load_utterances(config, workdir, backbone, split, **options)


def run(config: ConfigDict, workdir: Path) -> None:
    backbone = load_backbone(config)
    check(config, backbone)
    for mode in MODES[config.cascade.mode]:
        train(config, workdir, mode, backbone)
