"""What ten experts cost: a training step of the mixture beside one of a single LoRA, on the same batch.

COMMAND: python -m benchmarks.experts_cost [--model=tiny.en] [--experts=1,4,10,32] [--rounds=7] [--rank=16]
Every linear map of the decoder carries adapters, the shared path is on. "One LoRA" has the rank of one expert. Steps
alternate; printed are medians, their spread, the ratio to one LoRA, and the temporary memory XLA plans.
"""

import argparse
import statistics
import time
from typing import Any

import jax
import numpy as np

from jaxmoe.compilation import enable_cache
from jaxmoe.data.batches import Batch
from jaxmoe.memory import reuse_memory
from jaxmoe.model.load import load_whisper
from jaxmoe.model.moe import MoEWhisper, make_moe, one_lora
from jaxmoe.model.whisper import ModelDimensions
from jaxmoe.phases import baseline, joint
from jaxmoe.train import optimizer
from jaxmoe.train import state as states


def make_batch(model: MoEWhisper, size: int, positions: int, tokens: int) -> Batch:
    """Random latents and tokens of `size` utterances."""
    rng = np.random.default_rng(0)
    d = model.dims
    ids = rng.integers(0, d.n_vocab, (size, tokens + 1)).astype(np.int32)
    return Batch(
        embedding=rng.standard_normal((size, d.n_audio_state)).astype(np.float32),
        latents=rng.standard_normal((size, positions, d.n_audio_state)).astype(np.float32),
        mask=np.ones((size, positions), bool),
        tokens=ids[:, :-1],
        targets=ids[:, 1:],
        weights=np.ones((size, tokens), np.float32),
        posterior=np.zeros((size, model.num_experts), np.float32),
        index=np.arange(size, dtype=np.int32),
    )


class Step:
    """A compiled training step and its state."""

    def __init__(self, model: MoEWhisper, base: Any, batch: Batch):
        from ml_collections import ConfigDict

        c = ConfigDict(dict(balance=0.01, z=0.001, align=0.1, temperature=1.0, soft_steps=0, noise=0.0))
        params = model.init(jax.random.key(0), base)
        tx = optimizer.make_tx(
            jax.tree.map(lambda _: "train", params), lr=1e-4, steps=1000, warmup=1, weight_decay=0.01, clip_norm=1.0
        )
        step = joint.make_step(model, tx, c) if model.num_experts else baseline.make_step(model, tx)
        self.base, self.batch = base, jax.device_put(batch)
        self.state = states.create(params, tx, 0)
        lowered = jax.jit(step, donate_argnums=0).lower(self.state, base, self.batch)
        self.compiled = lowered.compile()
        self.memory = self.compiled.memory_analysis().temp_size_in_bytes / 2**20

    def run(self) -> dict[str, jax.Array]:
        """One step; its metrics, once they are there."""
        self.state, metrics = self.compiled(self.state, self.base, self.batch)
        return jax.block_until_ready(metrics)

    def seconds(self) -> float:
        start = time.perf_counter()
        self.run()
        return time.perf_counter() - start


def mixture(dims: ModelDimensions, experts: int, top_k: int, rank: int) -> MoEWhisper:
    """Experts on every linear map of the decoder, with a shared path of their rank."""
    fields = dict(rank=rank, shared_rank=rank, alpha=2.0 * rank, gate_hidden=512, dtype="float32", remat=False)
    return make_moe(dims, num_experts=experts, top_k=top_k, lora_targets=[r"decoder/blocks/.*"], **fields)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="tiny.en")
    p.add_argument("--experts", default="1,4,10,32")
    p.add_argument("--top_k", default="1,2,0", help="0 mixes all")
    p.add_argument("--rank", type=int, default=16)
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--batch_size", type=int, default=8)
    p.add_argument("--positions", type=int, default=400)
    p.add_argument("--tokens", type=int, default=24)
    args = p.parse_args()
    enable_cache()
    reuse_memory()
    dims, base, _ = load_whisper(args.model)
    base = jax.device_put(base)
    sizes = (args.batch_size, args.positions, args.tokens)
    make = lambda e, k: mixture(dims, e, k, args.rank)
    step = lambda model: Step(model, base, make_batch(model, *sizes))
    steps = {"one LoRA": step(one_lora(make(1, 1), args.rank))}
    for e in map(int, args.experts.split(",")):
        for k in map(int, args.top_k.split(",")):
            if k <= e:
                steps[f"{e} experts, {f'top {k}' if k else 'all mixed'}"] = step(make(e, k))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds + 1):
        for name, step in steps.items():
            times[name].append(step.seconds())
    one = times["one LoRA"]
    print(f"{args.model}, rank {args.rank}, batch {sizes[0]} x {sizes[1]} positions x {sizes[2]} tokens, "
          f"median of {args.rounds} alternating rounds")  # fmt: skip
    print("| step | ms | fastest to slowest | ratio to one LoRA | temporary memory |\n|---|---|---|---|---|")
    for name, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(values[1:], one[1:], strict=True))
        ms = [1000 * v for v in values[1:]]
        print(f"| {name} | {statistics.median(ms):.0f} | {min(ms):.0f} to {max(ms):.0f} | {ratio:.2f} | "
              f"{steps[name].memory:.0f} MiB |")  # fmt: skip


if __name__ == "__main__":
    main()
