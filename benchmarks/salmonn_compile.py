"""Compiles SALMONN's training and decoding steps at full size for a TPU slice that is not there; prints its memory.

COMMAND: pip install --no-deps --target=DIR libtpu==0.0.42.1   (684 MB, Google Cloud Platform Terms of Service)
         PYTHONPATH=.:DIR python -m benchmarks.salmonn_compile --size=13b --step=train --topology=v5e:2x4 --model=8
Figures are XLA's own buffer assignment for the chip: arguments and temporaries on each device. RESULT: docs/salmonn.md
"""

import argparse
import functools
import importlib.util
import json
import math
import os
import time

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v4-8")  # any: the topology is described below

import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax

from jaxmoe import sharding
from jaxmoe.model import llm_beam, lora
from jaxmoe.model.beats import Beats, BeatsDimensions
from jaxmoe.model.llm import LanguageModel, LanguageModelDimensions
from jaxmoe.model.qformer import Connector, QFormerDimensions
from jaxmoe.model.salmonn import Prompted, Salmonn
from jaxmoe.model.whisper import Encoder, ModelDimensions
from jaxmoe.phases.salmonn import answer_nll, make_step
from jaxmoe.train import state as states

WHISPER = ModelDimensions(80, 1500, 1280, 20, 32, 51865, 448, 1280, 20, 32)  # large-v2
VICUNA = {
    "7b": LanguageModelDimensions(32000, 32, 4096, 32, 32, 128, 11008, 10_000.0, 1e-5, False, False),
    "13b": LanguageModelDimensions(32000, 40, 5120, 40, 40, 128, 13824, 10_000.0, 1e-6, False, False),
}
BEFORE, AFTER = 8, 21  # tokens around the speech
TARGET = 64  # tokens of a translation in training
NEW, BEAMS = 200, 4  # the original's decoding


def make_model(size: str) -> Salmonn:
    dims, bf16 = VICUNA[size], jnp.bfloat16
    connector = Connector(dims.n_state, QFormerDimensions(), dtype=jnp.float32)
    encoder, beats = Encoder(WHISPER, bf16), Beats(BeatsDimensions(), bf16)
    return Salmonn(encoder, beats, connector, LanguageModel(dims, dtype=bf16), 8, 32.0)


def shapes_of(model: Salmonn) -> tuple[dict, dict]:
    """Base in bfloat16 and trainable parameters in float32, as shapes."""
    key, tokens = jax.random.key(0), jnp.zeros((1, 2), jnp.int32)
    init = lambda module, *args: jax.eval_shape(module.init, key, *args)["params"]
    base = {
        "whisper": init(model.encoder, jnp.zeros((1, 80, 3000))),
        "beats": init(model.beats, jnp.zeros((1, 32, 128)), jnp.zeros((1, 32), bool)),
        "llm": init(model.llm, tokens, tokens, jnp.ones((1, 2), bool)),
    }
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), base), jax.eval_shape(model.init, key)


def inputs(batch: int) -> dict[str, jax.ShapeDtypeStruct]:
    """30 s of audio of each item, as the encoders take it, and the prompt's tokens."""
    s = jax.ShapeDtypeStruct
    return {
        "audio": s((batch, 480_000), jnp.float32),
        "padding": s((batch, 480_000), jnp.bool_),
        "before": s((batch, BEFORE), jnp.int32),
        "after": s((batch, AFTER), jnp.int32),
        "targets": s((batch, TARGET), jnp.int32),
        "weights": s((batch, TARGET), jnp.float32),
    }


def prompted(x: dict) -> Prompted:
    return Prompted(
        None, None, x["audio"], x["padding"], x["before"], x["after"], x["after"] >= 0, x["targets"], x["weights"]
    )


def make_train(model: Salmonn, tx: optax.GradientTransformation):
    step = make_step(functools.partial(answer_nll, model), tx)
    return lambda state, base, x: step(state, base, prompted(x))


def make_decode(model: Salmonn):
    def decode(params: dict, base: dict, x: dict) -> tuple[jax.Array, jax.Array]:
        prompt, mask = model.prompt(base, params, prompted(x))
        merged = model.merged(base, params)
        return llm_beam.beam_search(model.llm, merged, prompt, mask, beams=BEAMS, max_tokens=NEW, stop=2)

    return decode


def argument_bytes(tree: object) -> int:
    """What each device holds of placed shapes."""
    part = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return sum(map(part, jax.tree.leaves(tree)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[*VICUNA], default="7b")
    parser.add_argument("--step", choices=["train", "decode"], default="train")
    parser.add_argument("--topology", default="v5e:2x4")
    parser.add_argument("--model", type=int, default=4, help="devices over which the matrices are split")
    parser.add_argument("--batch", type=int, default=8, help="utterances of the global batch")
    args = parser.parse_args()
    if importlib.util.find_spec("libtpu") is None:
        print("salmonn_compile: not run, libtpu is not installed; the command above says how")
        return
    devices = np.asarray(topologies.get_topology_desc(platform="tpu", topology_name=args.topology).devices)
    mesh = Mesh(devices.reshape(-1, args.model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    model = make_model(args.size)
    base, params = shapes_of(model)
    whole = NamedSharding(mesh, P())
    place = lambda tree, where: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)
    base = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        base, sharding.base_shardings(base, mesh, sharding.SALMONN_RULES),
    )  # fmt: skip
    batch = place(inputs(args.batch), NamedSharding(mesh, P("data")))
    if args.step == "train":
        tx = optax.adamw(3e-5, weight_decay=0.05)
        state = place(jax.eval_shape(lambda p: states.create(p, tx, 0), params), whole)
        jitted = jax.jit(make_train(model, tx), donate_argnums=0, out_shardings=(whole, whole))
    else:
        state, jitted = place(params, whole), jax.jit(make_decode(model), out_shardings=NamedSharding(mesh, P("data")))
    print(json.dumps({"argument_gb_by_the_rules": round(argument_bytes((state, base, batch)) / 1e9, 3)}), flush=True)
    start = time.perf_counter()
    lowered = jitted.lower(state, base, batch)
    middle = time.perf_counter()
    memory = lowered.compile().memory_analysis()
    figures = {
        **vars(args), "devices": devices.size, "mesh": dict(mesh.shape),
        "parameters": lora.count(base), "trained": lora.count(params),
        "argument_gb": memory.argument_size_in_bytes / 1e9, "temporary_gb": memory.temp_size_in_bytes / 1e9,
        "output_gb": memory.output_size_in_bytes / 1e9, "alias_gb": memory.alias_size_in_bytes / 1e9,
        "lower_s": middle - start, "compile_s": time.perf_counter() - middle,
    }  # fmt: skip
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in figures.items()}))


if __name__ == "__main__":
    main()
