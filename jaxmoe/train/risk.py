"""Expected translation risk: what an N-best list costs once a translator, a black box, has translated it.

Source: MWER training (Prabhavalkar et al. 2018, eq. 4, arXiv 1712.01818) with the cost of a translation in the place of
word errors.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxmoe.data.batches import Batch
from jaxmoe.data.text import Tokenizer
from jaxmoe.eval import bleu
from jaxmoe.model.decode import DecodingOptions, decode
from jaxmoe.model.moe import MoEWhisper

Translate = Callable[[Sequence[str]], list[str]]
SENTENCE_SCORES = {
    "chrf": lambda texts, references: bleu.chrf(bleu.chrf_statistics(texts, references)),
    "bleu": lambda texts, references: bleu.bleu(bleu.bleu_statistics(texts, references)),
}
MULTIPLE = 16  # N-best lists are padded to a multiple of these tokens: few shapes to compile
DEAD = -1e30  # log-probability of a place of the list that holds nothing


class NBest(flax.struct.PyTreeNode):
    """The N-best lists of a batch.

    Attributes:
      tokens, targets: [B, N, T], the decoder's input and what follows each token of it.
      weights: [B, N, T], 1 where a target counts; all 0 where a list has fewer than N.
      costs: [B, N], 1 - score of the translation, in [0, 1].
    """

    tokens: Any
    targets: Any
    weights: Any
    costs: Any


class RiskBatch(flax.struct.PyTreeNode):
    """Utterances with the N-best lists of the model that is being trained."""

    batch: Batch
    nbest: NBest


def sentence_costs(metric: str, german: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """1 - sentence score / 100 of each translation."""
    return 1.0 - SENTENCE_SCORES[metric](german, references) / 100.0


def expected(logprob: jax.Array, costs: jax.Array, live: jax.Array) -> jax.Array:
    """Mean over the batch of sum_n P^_n (cost_n - mean cost), P^ the probabilities renormalised over the list.

    Subtracting the list's mean changes no gradient's expectation and takes out most of its variance.
    logprob, costs, live: [B, N]; live is False where a list holds nothing.
    """
    probability = jax.nn.softmax(jnp.where(live, logprob, DEAD), axis=-1)  # [B, N]
    mean = (costs * live).sum(-1, keepdims=True) / jnp.maximum(live.sum(-1, keepdims=True), 1)
    return (probability * (costs - mean) * live).sum(-1).mean()


def sequence_logprob(
    model: MoEWhisper, base: Any, params: Any, batch: Batch, gates: jax.Array, nbest: NBest
) -> jax.Array:
    """log p(y_n | x) of every text of the lists, [B, N]."""
    b, n, t = nbest.tokens.shape
    repeat = lambda x: jnp.repeat(x, n, axis=0)  # [B * N, ...]
    flat = lambda x: x.reshape(b * n, t)
    texts = {"tokens": flat(nbest.tokens), "targets": flat(nbest.targets), "weights": flat(nbest.weights)}
    rows = jax.tree.map(repeat, batch).replace(**texts)
    return -model.nll(base, params, rows, repeat(gates)).reshape(b, n)


def search(
    model: MoEWhisper, base: Any, params: Any, batch: Batch, tokenizer: Tokenizer, prompt: Sequence[int], n: int
) -> list[list[list[int]]]:
    """The N texts, as tokens, that beam search finds for each utterance."""
    gates = model.gates(model.gate_logits(params, jnp.asarray(batch.embedding)))
    result = decode(
        model.whisper,
        base,
        jnp.asarray(batch.latents),
        prompt=prompt,
        tokenizer=tokenizer,
        options=DecodingOptions(beam_size=n, max_tokens=2 * batch.tokens.shape[1]),
        columns=model.columns(params),
        scales=model.scales(gates),
        cross_mask=jnp.asarray(batch.mask),
    )
    return [[hypothesis.tokens for hypothesis in row] for row in result.nbest]


def collate(texts: Sequence[Sequence[Sequence[int]]], prompt: Sequence[int], eot: int, n: int) -> NBest:
    """N-best lists as arrays; their costs are 0 until a translator has spoken."""
    longest = len(prompt) + max(len(text) for row in texts for text in row)
    shape = (len(texts), n, -(-longest // MULTIPLE) * MULTIPLE)
    tokens, targets = np.full(shape, eot, np.int32), np.full(shape, eot, np.int32)
    weights = np.zeros(shape, np.float32)
    for b, row in enumerate(texts):
        for k, text in enumerate(row):
            ids = [*prompt, *text, eot]
            tokens[b, k, : len(ids) - 1], targets[b, k, : len(ids) - 1] = ids[:-1], ids[1:]
            weights[b, k, len(prompt) - 1 : len(ids) - 1] = 1.0
    return NBest(tokens, targets, weights, np.zeros(shape[:2], np.float32))


def judge(
    texts: Sequence[Sequence[Sequence[int]]],
    references: Sequence[str],
    tokenizer: Tokenizer,
    translate: Translate,
    metric: str,
    n: int,
) -> np.ndarray:
    """What each text of the lists costs once translated, [B, N]; all texts go to the translator at once."""
    flat = [(b, k, tokenizer.decode(list(text)).strip()) for b, row in enumerate(texts) for k, text in enumerate(row)]
    german = translate([text for _, _, text in flat])
    found = sentence_costs(metric, german, [references[b] for b, _, _ in flat])
    costs = np.zeros((len(texts), n), np.float32)
    for (b, k, _), cost in zip(flat, found, strict=True):
        costs[b, k] = cost
    return costs
