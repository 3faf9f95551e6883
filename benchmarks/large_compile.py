"""Compiles large-v2's training, embedding and decoding steps for a TPU slice that is not there; bytes and operations.

COMMAND: pip install --no-deps --target=DIR libtpu==0.0.42.1   (684 MB, Google Cloud Platform Terms of Service)
         PYTHONPATH=.:DIR python -m benchmarks.large_compile --step=train --topology=v5e:2x4 --model=4
train: the joint phase's step, ten experts of rank 16 and a shared path on every linear map of the decoder, 30 s of
latents, 128 tokens, bfloat16, layers scanned and rematerialised. embed: log-mel and encoder. decode: prompt, and beam 5
up to --tokens. Bytes are XLA's own buffer assignment for the chip. Operations are those of the matrix products and
convolutions in the program, loops multiplied out, against the fewest that the same mathematics needs (minimum()):
frozen weights get no gradient, latents neither, nothing is computed twice. RESULT: docs/speed.md
"""

import argparse
from collections.abc import Sequence
import importlib.util
import json
import math
import os
import time
from typing import Any

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v4-8")  # any: the topology is described below

import jax
from jax.experimental import topologies
from jax.extend.core import jaxprs_in_params
from jax.interpreters import partial_eval
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
import numpy as np

from jaxmoe import sharding
from jaxmoe.data.batches import Batch
from jaxmoe.model import decode, lora
from jaxmoe.model.logit_rules import LogitRules
from jaxmoe.model.moe import MoEWhisper, make_moe
from jaxmoe.model.whisper import ModelDimensions
from jaxmoe.phases import embed, joint
from jaxmoe.train import optimizer
from jaxmoe.train import state as states

LARGE = ModelDimensions(80, 1500, 1280, 20, 32, 51865, 448, 1280, 20, 32)  # large-v2
EXPERTS, TOP_K, RANK = 10, 2, 16
TOKENS = 128  # of a training target
BEAMS = 5
S = jax.ShapeDtypeStruct


def make_model() -> MoEWhisper:
    fields = dict(rank=RANK, shared_rank=RANK, alpha=2.0 * RANK, gate_hidden=512, dtype="bfloat16", remat=True)
    return make_moe(LARGE, num_experts=EXPERTS, top_k=TOP_K, lora_targets=[r"decoder/blocks/.*"], **fields)


def train_step(model: MoEWhisper, base: Any, b: int) -> tuple[Any, tuple[Any, ...]]:
    """The jitted step and shapes of (state, base, batch)."""
    c = ConfigDict(dict(balance=0.01, z=0.001, align=0.1, temperature=1.0, soft_steps=0, noise=0.0))
    params = jax.eval_shape(model.init, jax.random.key(0), base)
    labels = jax.tree.map(lambda _: "train", params)
    tx = optimizer.make_tx(labels, lr=1e-4, steps=1000, warmup=1, weight_decay=0.01, clip_norm=1.0)
    state = jax.eval_shape(lambda p: states.create(p, tx, 0), params)
    d, ids, f32 = LARGE, S((b, TOKENS), jnp.int32), jnp.float32
    batch = Batch(
        embedding=S((b, d.n_audio_state), f32), latents=S((b, d.n_audio_ctx, d.n_audio_state), jnp.bfloat16),
        mask=S((b, d.n_audio_ctx), bool), tokens=ids, targets=ids, weights=S((b, TOKENS), f32),
        posterior=S((b, EXPERTS), f32), index=S((b,), jnp.int32),
    )  # fmt: skip
    return joint.make_step(model, tx, c), (state, base, batch)


def embed_step(model: MoEWhisper, base: Any, b: int) -> tuple[Any, tuple[Any, ...]]:
    return lambda *args: embed.encode(model.whisper, *args), (base, S((b, 480_000), jnp.float32), S((b,), jnp.int32))


def decode_step(model: MoEWhisper, base: Any, b: int, tokens: int) -> tuple[Any, tuple[Any, ...]]:
    """Reading the prompt and the whole search, over the columns of the mixture."""
    ids = dict(eot=50257, timestamp_begin=50364, no_timestamps=50363)
    search = decode.Search(LARGE, model.whisper.dtype, LogitRules(**ids, timestamps=True), BEAMS, tokens, "beam")
    params = jax.eval_shape(model.init, jax.random.key(0), base)
    prompt = jnp.array([[50258, 50259, 50359]] * b, jnp.int32)

    def run(params: Any, base: Any, latents: jax.Array, gates: jax.Array) -> jax.Array:
        context = decode.Context(
            {"params": base["decoder"], "lora": model.columns(params)["decoder"]}, model.scales(gates), None, None,
            jnp.ones(prompt.shape, bool), None, jnp.float32(0.0),
        )  # fmt: skip
        live = jnp.ones(b, bool)
        context, state, _ = decode._start(search, context, latents, prompt, live, sot_index=0, no_speech=50362)
        state = decode._grow(state, prompt.shape[1] + tokens * BEAMS)
        return decode._run(search, context, state, stage=tokens).ended_tokens

    d = LARGE
    latents = S((b, d.n_audio_ctx, d.n_audio_state), jnp.bfloat16)
    return run, (params, base, latents, S((b, EXPERTS), jnp.float32))


def operations(jaxpr: Any, turns: int) -> float:
    """Operations of the matrix products and convolutions of a jaxpr; a `while` of unknown length runs `turns` times."""
    total = 0.0
    for eqn in jaxpr.eqns:
        name, out = eqn.primitive.name, math.prod(eqn.outvars[0].aval.shape) if eqn.outvars else 0
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += 2.0 * out * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * out * math.prod(kernel) / features
        elif name == "cond":  # platform_dependent's: the last is what other platforms than a CPU run
            total += operations(eqn.params["branches"][-1].jaxpr, turns)
        else:
            times = eqn.params["length"] if name == "scan" else turns if name == "while" else 1
            total += times * sum(operations(inner, turns) for inner in jaxprs_in_params(eqn.params))
    return total


def minimum(step: str, b: int, tokens: int, d: ModelDimensions = LARGE) -> float:
    """The fewest operations of a step: 2 for each weight and each row that it multiplies, and those of attention.

    train: forward, the gradient with respect to activations, those of adapters (shared and chosen columns alone);
    the chain ends at the first layer's adapters and at the latents. embed: forward. decode: forward of BEAMS rows.
    """
    w, s, t, v, layers = d.n_text_state, d.n_audio_ctx, tokens, d.n_vocab, d.n_text_layer
    if step == "embed":
        blocks = d.n_audio_layer * (2 * 12 * w * w * s + 4 * s * s * w)
        return b * (blocks + 2 * 3 * w * (d.n_mels * 2 * s + w * s))
    text, heard = 14 * w * w, 2 * w * w  # weights of a layer that read tokens, and that read latents
    if step == "decode":
        once = layers * 2 * heard * s
        return b * (once + BEAMS * t * (layers * (2 * text + 4 * s * w + 4 * w * t / 2) + 2 * v * w))
    k = RANK * (1 + TOP_K)
    adapted = k * (6 * 2 * w + 2 * 5 * w), k * 2 * 2 * w  # A and B of the maps that read tokens; of those of latents
    frozen = layers * (4 * text * t + 2 * heard * s) + 4 * v * w * t
    adapters = layers * (6 * adapted[0] * t + 5 * adapted[1] * s)
    attention = layers * 3 * (4 * w * t * t / 2 + 4 * w * t * s)
    return b * (frozen + adapters + attention)


def place(tree: Any, where: Any) -> Any:
    return jax.tree.map(lambda x: S(x.shape, x.dtype, sharding=where), tree)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", choices=["train", "embed", "decode"], default="train")
    parser.add_argument("--topology", default="v5e:2x4")
    parser.add_argument("--model", type=int, default=1, help="devices over which the matrices are split")
    parser.add_argument("--batch", type=int, default=32, help="utterances of the global batch")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of a decoded text")
    args = parser.parse_args(argv)
    model = make_model()
    shapes = jax.eval_shape(
        model.whisper.init, jax.random.key(0), S((1, 80, 3000), jnp.float32), S((1, 2), jnp.int32)
    )["params"]  # fmt: skip
    base = jax.tree.map(lambda x: S(x.shape, jnp.bfloat16), shapes)
    if args.step == "train":
        step, inputs = train_step(model, base, args.batch)
    elif args.step == "embed":
        step, inputs = embed_step(model, base, args.batch)
    else:
        step, inputs = decode_step(model, base, args.batch, args.tokens)
    traced = jax.make_jaxpr(step)(*inputs)
    used, _ = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    done, fewest = operations(used, args.tokens), minimum(args.step, args.batch, args.tokens)
    figures = {"parameters": lora.count(base), "tera_operations": done / 1e12, "of_minimum": done / fewest}
    show({**vars(args), **figures})
    if importlib.util.find_spec("libtpu") is None:
        print("large_compile: not compiled, libtpu is not installed; the command above says how")
        return
    devices = np.asarray(topologies.get_topology_desc(platform="tpu", topology_name=args.topology).devices)
    mesh = Mesh(devices.reshape(-1, args.model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    at = inputs.index(base)
    placed_base = jax.tree.map(lambda x, w: S(x.shape, x.dtype, sharding=w), base, sharding.base_shardings(base, mesh))
    placed = [place(x, whole) for x in inputs[:at]] + [placed_base] + [place(x, split) for x in inputs[at + 1 :]]
    if args.step == "train":
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(whole, whole))
    else:
        jitted = jax.jit(step, out_shardings=split)
    start = time.perf_counter()
    memory = jitted.lower(*placed).compile().memory_analysis()
    sizes = {
        "devices": devices.size, "mesh": dict(mesh.shape),
        "argument_gb": memory.argument_size_in_bytes / 1e9, "temporary_gb": memory.temp_size_in_bytes / 1e9,
        "alias_gb": memory.alias_size_in_bytes / 1e9, "compile_s": time.perf_counter() - start,
    }  # fmt: skip
    show(sizes)


def show(figures: dict[str, Any]) -> None:
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in figures.items()}), flush=True)


if __name__ == "__main__":
    main()
