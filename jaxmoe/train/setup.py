"""What the training phases open: the backbone on the mesh, and the utterances of a split with their tokens."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np
import optax

from jaxmoe import sharding
from jaxmoe.data import lineage, prepared
from jaxmoe.data.audio import N_SAMPLES
from jaxmoe.data.batches import (
    UNKNOWN,
    Batch,
    BatchSource,
    Utterances,
    draws_per_epoch,
    every_utterance,
    iterate,
)
from jaxmoe.data.embeddings import Embeddings, with_windows
from jaxmoe.data.text import Tokenizer
from jaxmoe.model import lora
from jaxmoe.model.load import load_whisper
from jaxmoe.model.moe import MoEWhisper, make_moe, usage
from jaxmoe.train import optimizer
from jaxmoe.train import state as states
from jaxmoe.train.loop import StepFn, fit

NO_LATENTS = "no latents, --phase=embed --force makes them"


@dataclasses.dataclass(frozen=True)
class Backbone:
    """The frozen Whisper of a run, on its mesh, and the mixture around it."""

    name: str
    mesh: jax.sharding.Mesh
    base: Any  # Whisper parameters, sharded
    model: MoEWhisper
    tokenizer: Tokenizer


def load_backbone(config: ConfigDict, name: str | None = None) -> Backbone:
    """Resolves, loads and places the backbone `name` (config.model.backbone by default)."""
    fields = dict(config.model)
    first, _ = fields.pop("backbone"), fields.pop("second")
    name = name or first
    dims, base, tokenizer = load_whisper(name)
    mesh = sharding.make_mesh(**config.mesh)
    model = make_moe(dims, **fields)
    dtype = model.whisper.dtype
    base = jax.tree.map(lambda x: np.asarray(x, dtype), base)
    base = jax.device_put(base, sharding.base_shardings(base, mesh))
    return Backbone(name, mesh, base, model, tokenizer)


def embeddings_folder(workdir: Path, backbone: str, split: str) -> Path:
    """Where `embed` keeps a backbone's latents of a split."""
    return workdir / "embeddings" / Path(backbone).name / split


def load_posterior(workdir: Path, num_experts: int, *, fitted: bool = True) -> dict[str, np.ndarray]:
    """id -> soft membership by expert [E], of the utterances that `cluster` was fitted on; of all without `fitted`."""
    path = workdir / "clusters" / "assignments.jsonl"
    if not path.exists():
        raise FileNotFoundError(f"{path}: no clusters; run --phase=cluster first.")
    lines = map(json.loads, path.read_text().splitlines())
    posterior = {x["id"]: np.asarray(x["membership"], np.float32) for x in lines if x["fitted"] or not fitted}
    sizes = {len(m) for m in posterior.values()}
    if sizes != {num_experts}:
        raise ValueError(
            f"{path}: memberships of {sorted(sizes)} experts, config.model.num_experts is "
            f"{num_experts}; run --phase=cluster again."
        )
    return posterior


def _why_not(item: dict[str, Any], split: str, embedded: bool, text: str, excess: int) -> str:
    """Why an utterance cannot be trained on, "" if it can; excess: tokens that the decoder has no room for."""
    if not embedded:
        whole = split == "evaluation" and item["samples"] > N_SAMPLES
        return "over 30 s, which evaluation hears whole" if whole else NO_LATENTS
    if not text:
        return "no text to learn"
    return "more tokens than the decoder has room for" if excess > 0 else ""


def load_utterances(
    config: ConfigDict,
    workdir: Path,
    backbone: Backbone,
    split: str,
    *,
    pretrain: bool = False,
    posterior: dict[str, np.ndarray] | None = None,
    language: str = "en",
    said: Callable[[dict[str, Any]], str] = lambda item: item["text"],
) -> Utterances:
    """The utterances of a split, of long recordings their windows; with `pretrain`, only the pre-training sample.

    What the decoder is to say of an item is said(item), in `language`. What cannot be trained on is in `left_out`.
    The utterances of train carry the groups of config.reweight.
    """
    tokenizer, folder = backbone.tokenizer, embeddings_folder(workdir, backbone.name, split)
    embeddings = Embeddings(folder)
    prompt = list(tokenizer.sot_sequence(language=language, task="transcribe", timestamps=False))
    limit = backbone.model.dims.n_text_ctx
    experts = backbone.model.num_experts
    none = np.zeros(experts, np.float32)
    rows, tokens, posteriors, kept, left_out = [], [], [], [], []
    for item in with_windows(prepared.open_metadata(workdir, split), folder):
        if pretrain and not item["pretrain"]:
            continue
        text = said(item).strip()
        ids = [*prompt, *tokenizer.encode(" " + text), tokenizer.eot]
        if reason := _why_not(item, split, item["id"] in embeddings.row, text, len(ids) - limit):
            left_out.append({"id": item["id"], "split": split, "reason": reason})
            continue
        rows.append(embeddings.row[item["id"]])
        tokens.append(ids)
        posteriors.append((posterior or {}).get(item["id"], none))
        kept.append(item)
    for reason, count in Counter(x["reason"] for x in left_out).items():
        print(f"{count} utterances of {split} are left out: {reason}")
    if not rows:
        sample = " of the pre-training sample (config.data.pretrain_share)" if pretrain else ""
        raise ValueError(f"{workdir}: no utterances in split {split!r}{sample}.")
    given = backbone.model.routing == "given"
    translations, speakers = [item["translation"] for item in kept], [item["speaker"] for item in kept]
    groups = _groups(config.reweight, kept) if split == "train" and config.reweight else ()
    return Utterances(
        embeddings, np.array(rows), tokens, len(prompt), np.stack(posteriors), given, translations, speakers,
        left_out=left_out, groups=groups,
    )  # fmt: skip


def note_utterances(folder: Path, train: Utterances, validation: Utterances | None, start: Path | None = None) -> None:
    """FOLDER/lineage.json, whom what is trained there sees, and FOLDER/left_out.jsonl, what it does not and why."""
    lineage.write(folder, train.speakers, start)
    left_out = [*train.left_out, *(validation.left_out if validation else ())]
    (folder / "left_out.jsonl").write_text("".join(json.dumps(x) + "\n" for x in left_out), encoding="utf-8")


def _groups(column: str, items: Sequence[dict[str, Any]]) -> list[str]:
    """Each utterance's value of the column config.reweight, and a line on what comes of it.

    Raises: ValueError for a column that does not exist or tells nobody apart.
    """
    if column not in prepared.STRINGS:
        raise ValueError(f"config.reweight={column!r} is no column; there are {', '.join(prepared.STRINGS)}.")
    groups = [item[column] for item in items]
    draws = dict(zip(groups, draws_per_epoch(groups), strict=True))
    times = sorted(n for name, n in draws.items() if name not in UNKNOWN)
    if len(times) < 2:
        raise ValueError(
            f"config.reweight={column!r}: all utterances to train on have {sorted(draws)}, so there is nothing to "
            "weigh; choose another column, or leave it empty."
        )
    unknown = sum(name in UNKNOWN for name in groups)
    print(
        f"drawn by {column}: {len(times)} groups equally often, their utterances {times[0]:.2f} to {times[-1]:.2f} "
        f"times an epoch; {unknown} of no known group once"
    )
    return groups


def make_tx(c: ConfigDict, params: Any, trainable: Sequence[str]) -> optax.GradientTransformation:
    """The optimizer of a phase's group of the configuration; prints what trains."""
    labels = optimizer.label(params, trainable)
    trained = jax.tree.map(lambda p, t: p.size if t == "train" else 0, params, labels)
    trained = sum(jax.tree.leaves(trained))
    print(f"trainable parameters: {trained:,} of {lora.count(params):,} outside the frozen base")
    return optimizer.make_tx(
        labels,
        lr=c.lr,
        steps=c.steps,
        warmup=c.warmup,
        weight_decay=c.weight_decay,
        clip_norm=c.clip_norm,
    )


def validation(
    model: MoEWhisper, backbone: Backbone, utterances: Utterances, batch_size: int
) -> Callable[[Any], dict[str, float]]:
    """params -> {"validation_nll"}: nats per target token of `utterances`, routed by the gate."""
    def nll(params: Any, base: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        gates = model.gates(model.gate_logits(params, batch.embedding))
        return model.nll(base, params, batch, gates), batch.weights

    return nats_per_token(nll, backbone.base, lambda: every_utterance(utterances, batch_size), backbone.mesh)


def nats_per_token(
    nll: Callable[[Any, Any, Any], tuple[jax.Array, jax.Array]],
    base: Any,
    batches: Callable[[], Iterable[Any]],
    mesh: jax.sharding.Mesh,
) -> Callable[[Any], dict[str, float]]:
    """params -> {"validation_nll"} over `batches()`; nll(params, base, batch) -> what each utterance costs [B] and the
    weights of its tokens [B, T]."""

    @jax.jit
    def sums(params: Any, base: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        of_each, weights = nll(params, base, batch)
        return of_each.sum(), weights.sum()

    def evaluate(params: Any) -> dict[str, float]:
        totals = [jax.device_get(sums(params, base, sharding.put_batch(b, mesh))) for b in batches()]
        return {"validation_nll": float(sum(t[0] for t in totals) / sum(t[1] for t in totals))}

    return evaluate


def watch_collapse(
    posterior: dict[str, np.ndarray], floor: float
) -> Callable[[dict[str, Any]], str | None]:
    """What is logged -> a warning where routing falls under `floor` times the experts that have a cluster.

    Adds effective_experts, exp(H(mean gate)), to what is logged.

    Args:
      posterior: as load_posterior gives it.
    """
    live = int((np.stack(list(posterior.values())).sum(0) > 0).sum())

    def watch(values: dict[str, Any]) -> str | None:
        found = usage(np.array([values["mean_gate"]]))["effective_experts"]
        values["effective_experts"] = found
        if found >= floor * live:
            return None
        return (
            f"routing collapses: {found:.1f} effective experts of {live} live ones, under the floor of "
            f"{floor * live:.1f} (config.joint.min_effective={floor:g}). Raise config.joint.balance or soft_steps."
        )

    return watch


def train(
    config: ConfigDict,
    workdir: Path,
    phase: str,
    backbone: Backbone,
    model: MoEWhisper,
    utterances: Utterances,
    step: StepFn,
    params: Any,
    tx: optax.GradientTransformation,
    *,
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    watch: Callable[[dict[str, Any]], str | None] | None = None,
) -> Any:
    """Runs `fit` with the sizes of config.<phase> in WORKDIR/<phase>; returns the trained parameters.

    Args:
      evaluate: of a phase that reads no latents, whose parameters of the lowest validation_nll are kept in
        WORKDIR/<phase>/best; None validates the decoder.
      watch: as fit's.
    """
    c, latents = config[phase], evaluate is None
    source = BatchSource(
        utterances, batch_size=c.batch_size, steps=c.steps, seed=config.seed, latents=latents
    )
    held_out = None
    if evaluate is None:
        posterior = load_posterior(workdir, model.num_experts, fitted=False) if model.routing == "given" else None
        held_out = load_utterances(config, workdir, backbone, "validation", posterior=posterior)
        evaluate = validation(model, backbone, held_out, c.batch_size)
    note_utterances(workdir / phase, utterances, held_out)
    state = fit(
        step,
        states.create(params, tx, config.seed),
        backbone.base,
        iterate(source),
        folder=workdir / phase,
        steps=c.steps,
        mesh=backbone.mesh,
        log_every=c.log_every,
        save_every=c.save_every,
        evaluate=evaluate,
        select="" if latents else "validation_nll",
        watch=watch,
    )
    return state.params
