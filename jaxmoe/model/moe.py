"""Whisper with a gated mixture of LoRA experts in the decoder: what composes whisper.py, lora.py and gate.py.

`base`, the Whisper parameters, is always an argument. What trains is `{"gate": ..., "shared": bank, "experts": bank}`;
with no experts (the baseline, one LoRA) "gate" and "experts" are empty and the shared path is the adapter.
"""

from collections.abc import Sequence
import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoe.model import gate, lora
from jaxmoe.model.whisper import ModelDimensions, Whisper

if TYPE_CHECKING:
    from jaxmoe.data.batches import Batch

Params = dict[str, Any]
GATHER_FROM = 3  # experts for each one chosen, from which picking their columns beats computing all (experts_cost.py)


@dataclasses.dataclass(frozen=True)
class MoEWhisper:
    """The model of one run; pure functions of (base, params, ...)."""

    whisper: Whisper
    num_experts: int  # E; 0 for one LoRA without a gate
    rank: int  # of each expert
    shared_rank: int  # of the always-on path; 0 turns it off
    alpha: float  # every low-rank column is scaled by alpha / rank, the shared path's too
    top_k: int
    hidden: int  # of the gate
    targets: tuple[str, ...]  # regexes of the linear maps that carry adapters
    routing: str = "gate"  # "given": the posterior of an utterance stands where its embedding would, for ablations

    @property
    def dims(self) -> ModelDimensions:
        return self.whisper.dims

    def init(self, key: jax.Array, base: Params) -> Params:
        """Parameters that compute exactly the base model."""
        shapes = lora.linear_shapes(base, self.targets)
        gate_key, shared_key, experts_key = jax.random.split(key, 3)
        params: Params = {"gate": {}, "shared": {}, "experts": {}}
        if self.shared_rank:
            params["shared"] = lora.init_bank(
                shared_key, shapes, num_experts=1, rank=self.shared_rank
            )
        if self.num_experts:
            e = jnp.zeros((1, self.dims.n_audio_state))
            params["gate"] = self._gate.init(gate_key, e)["params"] if self.routing == "gate" else {}
            params["experts"] = lora.init_bank(
                experts_key, shapes, num_experts=self.num_experts, rank=self.rank
            )
        return params

    @property
    def _gate(self) -> gate.Gate:
        return gate.Gate(self.num_experts, self.hidden)

    def gate_logits(self, params: Params, embedding: jax.Array) -> jax.Array:
        """Embeddings e [B, D] -> gate logits [B, E]; [B, 0] without experts."""
        if not self.num_experts:
            return jnp.zeros((embedding.shape[0], 0))
        if self.routing == "given":
            return jnp.log(jnp.maximum(embedding, 1e-9))  # a row of zeros routes evenly
        return self._gate.apply({"params": params["gate"]}, embedding)

    def gates(
        self, gate_logits: jax.Array, temperature: float = 1.0, top_k: int | None = None
    ) -> jax.Array:
        """Gate logits -> mixing weights g [B, E], rows summing to 1."""
        if not self.num_experts:
            return gate_logits
        return gate.top_k_softmax(gate_logits, self.top_k if top_k is None else top_k, temperature)

    def columns(self, params: Params) -> dict[str, Any]:
        """The low-rank columns as the "lora" collection of `whisper`."""
        return lora.nested(lora.stack(params["shared"], params["experts"]))

    def scales(self, gates: jax.Array) -> jax.Array:
        """Mixing weights [B, E] -> the columns' scales [B, K]."""
        return lora.scales(
            gates,
            rank=self.rank,
            shared_rank=self.shared_rank,
            alpha=self.alpha,
            shared_alpha=self.alpha / self.rank * self.shared_rank,
        )

    def logits(
        self,
        base: Params,
        params: Params,
        latents: jax.Array,
        tokens: jax.Array,
        gates: jax.Array,
        cross_mask: jax.Array | None = None,
        *,
        exact_top_k: bool = True,
    ) -> jax.Array:
        """One pass of the decoder with the mixture: latents [B, S, D], tokens [B, T] -> logits [B, T, V].

        exact_top_k: whether at most top_k gates of a row are above zero, so that the other experts may be left out.
        """
        variables, scales = self._mixture(base, params, gates, exact_top_k)
        return self.whisper.apply(variables, latents, tokens, scales, cross_mask, method="logits")

    def nll(
        self, base: Params, params: Params, batch: "Batch", gates: jax.Array, *, exact_top_k: bool = True
    ) -> jax.Array:
        """-log p of each utterance's weighted targets under the mixture, summed, in nats: [B]. No logits are kept."""
        variables, scales = self._mixture(base, params, gates, exact_top_k)
        given = batch.latents, batch.tokens, batch.targets, scales, batch.mask
        return (self.whisper.apply(variables, *given, method="token_nll") * batch.weights).sum(-1)

    def _mixture(self, base: Params, params: Params, gates: jax.Array, exact_top_k: bool) -> tuple[dict[str, Any], Any]:
        """Variables of `whisper` and the columns' scales for mixing weights [B, E]."""
        scales: Any = self.scales(gates)
        columns = self.columns(params)
        if 0 < self.top_k and GATHER_FROM * self.top_k <= self.num_experts and exact_top_k:
            columns = lora.nested(lora.apart(params["shared"], params["experts"]))
            scales = lora.choose(scales, gates, self.top_k, rank=self.rank, shared_rank=self.shared_rank)
        return {"params": base, "lora": columns}, scales


def make_moe(
    dims: ModelDimensions,
    *,
    num_experts: int,
    rank: int,
    shared_rank: int,
    alpha: float,
    top_k: int,
    gate_hidden: int,
    lora_targets: Sequence[str],
    dtype: str,
    remat: bool,
    routing: str = "gate",
) -> MoEWhisper:
    """The model that config.model describes, for a backbone of sizes `dims`."""
    if routing not in ("gate", "given"):
        raise ValueError(f"config.model.routing={routing!r}; expected gate or given.")
    whisper = Whisper(dims, jnp.dtype(resolve_dtype(dtype)), remat)
    return MoEWhisper(
        whisper, num_experts, rank, shared_rank, alpha, top_k, gate_hidden, tuple(lora_targets), routing
    )


def one_lora(model: MoEWhisper, rank: int = 0) -> MoEWhisper:
    """The baseline: no gate, no experts, one adapter on the same linear maps with the experts' scale.

    rank 0 gives it as many adapter parameters as the mixture has in all.
    """
    rank = rank or model.shared_rank + model.num_experts * model.rank
    return dataclasses.replace(model, num_experts=0, shared_rank=rank, routing="gate")


def resolve_dtype(name: str) -> str:
    """ "auto" is float32 on CPU, where XLA has no fast bfloat16 GEMM, and bfloat16 elsewhere."""
    if name != "auto":
        return name
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def usage(gates: np.ndarray) -> dict[str, Any]:
    """What a set of gates [U, E] says of routing: top-1 share, mean probability, effective experts exp(H(mean g)),
    mean entropy in nats."""
    gates = np.asarray(gates, np.float64)
    mean = gates.mean(0)
    entropy = lambda p: -(p * np.log(np.maximum(p, 1e-12))).sum(-1)
    top1 = np.bincount(gates.argmax(1), minlength=gates.shape[1]) / len(gates)
    return {
        "usage": top1.tolist(),
        "mean_gate": mean.tolist(),
        "effective_experts": float(np.exp(entropy(mean))),
        "gate_entropy": float(entropy(gates).mean()),
    }
