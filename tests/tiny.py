"""A Whisper small enough for tests, and utterances for it: random, but with every part of the real thing."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoe.data import embeddings
from jaxmoe.data.batches import Utterances
from jaxmoe.model import moe
from jaxmoe.model.whisper import ModelDimensions, Whisper

DIMS = ModelDimensions(80, 100, 32, 2, 2, 300, 64, 32, 2, 2)
EXPERTS = 3


def make_model(**changes) -> moe.MoEWhisper:
    fields = dict(num_experts=EXPERTS, rank=2, shared_rank=3, alpha=4.0, top_k=2, gate_hidden=16)
    fields |= dict(lora_targets=[r"decoder/blocks/.*"], dtype="float32", remat=False) | changes
    return moe.make_moe(DIMS, **fields)


def make_base(seed: int = 0) -> dict:
    mel, tokens = jnp.zeros((1, DIMS.n_mels, 2 * DIMS.n_audio_ctx)), jnp.zeros((1, 4), jnp.int32)
    return jax.jit(Whisper(DIMS).init)(jax.random.key(seed), mel, tokens)["params"]


def make_params(model: moe.MoEWhisper, base: dict, seed: int = 1) -> dict:
    """Trained-looking parameters: no low-rank path is zero."""
    params = model.init(jax.random.key(seed), base)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    moved = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


def make_utterances(folder: Path, count: int = 24, seed: int = 0) -> Utterances:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(10, DIMS.n_audio_ctx, count)
    ids = [f"utterance-{i}" for i in range(count)]
    latents = [rng.standard_normal((n, DIMS.n_audio_state)) for n in lengths]
    depths = rng.standard_normal((count, DIMS.n_audio_layer + 2, 2, DIMS.n_audio_state))
    embeddings.write_shard(folder, 0, ids, latents, depths)
    tokens = [[257, 258, *rng.integers(0, 256, rng.integers(2, 12)).tolist(), 256] for _ in ids]
    posterior = np.eye(EXPERTS)[rng.integers(0, EXPERTS, count)]
    return Utterances(embeddings.Embeddings(folder), np.arange(count), tokens, 2, posterior)
