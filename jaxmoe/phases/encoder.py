"""Adapts the encoder to all speakers of train, from the audio; mixture and decoder stay as they are.

Reads   WORKDIR/corpus, WORKDIR/embeddings (which recordings there are), WORKDIR/joint/params
Writes  WORKDIR/encoder/  checkpoints, metrics.jsonl; params: the offsets of biases and norms, and the LoRA, that the
        validation speakers are best understood with, those of step 0, which change nothing, included

The phases before it read the frozen encoder's latents from disk; this one computes the encoder and its gradient at
every step.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from jaxmoe import sharding
from jaxmoe.checkpoint import load_params, save_params
from jaxmoe.data import prepared
from jaxmoe.data.audio import SAMPLES_PER_POSITION, window
from jaxmoe.data.batches import Batch, BatchSource, Utterances, every_utterance, iterate
from jaxmoe.data.embeddings import with_windows
from jaxmoe.model import offsets
from jaxmoe.model.moe import MoEWhisper
from jaxmoe.phases.embed import encode
from jaxmoe.train import losses, optimizer
from jaxmoe.train import state as states
from jaxmoe.train.loop import StepFn, fit
from jaxmoe.train.setup import (
    Backbone,
    embeddings_folder,
    load_backbone,
    load_posterior,
    load_utterances,
    make_tx,
    nats_per_token,
    note_utterances,
    watch_collapse,
)

Sound = Callable[[int], np.ndarray]


class Heard(NamedTuple):
    """Recordings and what is said in them."""

    audio: Any  # [B, n], padded with zeros
    samples: Any  # [B]
    batch: Batch  # without latents: they are made anew, and so are embeddings


def hear(batch: Batch, sounds: Sequence[np.ndarray], size: int) -> Heard:
    """The utterances of a batch, recordings float [n] in `sounds`, padded to `size` samples."""
    audio = np.stack([np.pad(x, (0, size - len(x))) for x in sounds])
    positions = size // SAMPLES_PER_POSITION
    mask = np.pad(batch.mask, [(0, 0), (0, positions - batch.mask.shape[1])])
    return Heard(audio, np.array([len(x) for x in sounds]), batch.replace(latents=None, mask=mask))


def encoded(model: MoEWhisper, mixture: tuple[Any, Any], mine: Any, heard: Heard) -> tuple[Any, Any, Batch]:
    """The mixture's parameters and Whisper's as `mine`, offsets, move them, and the batch with latents and embeddings
    of that encoder.

    Args:
      mixture: the adapters' parameters and Whisper's.
    """
    params, base = offsets.compose(*mixture, mine)
    latents, depths = encode(model.whisper, base, heard.audio, heard.samples)
    return params, base, heard.batch.replace(latents=latents, embedding=depths[:, -1, 0])


def nll(model: MoEWhisper, mixture: tuple[Any, Any], mine: Any, heard: Heard) -> jax.Array:
    """Summed cross-entropy [B], in nats, through encoder and mixture; arguments as those of `encoded`."""
    params, base, batch = encoded(model, mixture, mine, heard)
    return model.nll(base, params, batch, model.gates(model.gate_logits(params, batch.embedding)))


def sounds_of(config: ConfigDict, workdir: Path, utterances: Utterances, split: str) -> Sound:
    """Number of an utterance -> its recording, or its window of one, float32 [n]."""
    source, metadata = prepared.open_split(workdir, split), prepared.open_metadata(workdir, split)
    folder = embeddings_folder(workdir, config.model.backbone, split)
    items = {x["id"]: x for x in with_windows(metadata, folder)}
    chosen = [items[utterances.embeddings.ids[row]] for row in utterances.rows]

    def sound(number: int) -> np.ndarray:
        item = chosen[number]
        return source[item["row"]]["audio"][item["start"] :][: item["samples"]] / np.float32(32768.0)

    return sound


def listener(config: ConfigDict, sound: Sound) -> Callable[[Batch], Heard]:
    """Batch -> what is heard of it, in the window that `embed` would choose for its longest utterance."""

    def listen(batch: Batch) -> Heard:
        samples = batch.latents.shape[1] * SAMPLES_PER_POSITION  # with the margin
        return hear(batch, [sound(i) for i in batch.index], window(samples, config.embed.context, 0.0))

    return listen


def make_step(model: MoEWhisper, tx: Any) -> StepFn:
    """A step over Heard; its base is what `nll` calls mixture."""

    def loss_fn(mine: Any, base: Any, heard: Heard) -> tuple[jax.Array, dict[str, jax.Array]]:
        params, whisper, batch = encoded(model, base, mine, heard)
        gates = model.gates(model.gate_logits(params, batch.embedding))
        loss = losses.mean_nll(model.nll(whisper, params, batch, gates), batch.weights)
        return loss, {"loss": loss, "mean_gate": gates.mean(0)}

    def step(state: states.TrainState, base: Any, heard: Heard) -> tuple[states.TrainState, dict[str, jax.Array]]:
        grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, base, heard)
        return optimizer.advance(tx, state, grads, jnp.ones(model.num_experts, bool)), metrics

    return step


def mixture_of(workdir: Path, backbone: Backbone) -> tuple[Any, Any]:
    """The adapters that phase joint has trained, and Whisper's parameters, on the mesh."""
    like = jax.eval_shape(backbone.model.init, jax.random.key(0), backbone.base)
    adapters = load_params(workdir / "joint" / "params", like)
    return jax.device_put(adapters, sharding.replicated(backbone.mesh)), backbone.base


def validation(
    config: ConfigDict, workdir: Path, backbone: Backbone, mixture: tuple[Any, Any], held_out: Utterances, size: int
) -> Callable[[Any], dict[str, float]]:
    """Offsets -> {"validation_nll"}: nats per target token of the validation split, from the audio."""
    listen = listener(config, sounds_of(config, workdir, held_out, "validation"))

    def measured(mine: Any, base: Any, heard: Heard) -> tuple[jax.Array, jax.Array]:
        return nll(backbone.model, base, mine, heard), heard.batch.weights

    return nats_per_token(measured, mixture, lambda: map(listen, every_utterance(held_out, size)), backbone.mesh)


def run(config: ConfigDict, workdir: Path) -> None:
    backbone, c = load_backbone(config), config.encoder
    model, folder = backbone.model, workdir / "encoder"
    if model.routing == "given":
        raise ValueError(
            "config.model.routing='given': what routes by clusters has no gate that an adapted encoder could be heard "
            "by; give --config.encoder.steps=0."
        )
    said, held_out = (load_utterances(config, workdir, backbone, split) for split in ("train", "validation"))
    source = BatchSource(said, batch_size=c.batch_size, steps=c.steps, seed=config.seed)
    listen = listener(config, sounds_of(config, workdir, said, "train"))
    mine, base = offsets.init(model, backbone.base, c.rank, config.seed), mixture_of(workdir, backbone)
    tx = make_tx(c, mine, [".*"])
    note_utterances(folder, said, held_out, workdir / "joint")
    fit(
        make_step(model, tx),
        states.create(mine, tx, config.seed),
        base,
        iterate(source),
        folder=folder,
        steps=c.steps,
        mesh=backbone.mesh,
        log_every=c.log_every,
        save_every=c.save_every,
        evaluate=validation(config, workdir, backbone, base, held_out, c.batch_size),
        select="validation_nll",
        watch=watch_collapse(load_posterior(workdir, model.num_experts), config.joint.min_effective),
        prepare=lambda state, batch: listen(batch),
    )
    save_params(folder / "params", load_params(folder / "best", mine))
