"""A start for SALMONN's connector: its embeddings learn to spell the transcript, before the language model hears them.

Random embeddings tell a frozen language model nothing, and to learn from its answers alone what they should be takes
tens of thousands of steps. So the connector first learns to come near the model's own embeddings of the tokens that are
said, in their order, by CTC (Graves et al. 2006); between them it stays near their mean, which stands for CTC's blank.
The language model takes no part: a step costs what the connector costs.
Shapes: B batch, W embeddings of speech, K tokens of the vocabulary, N tokens of a transcript, D width.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmoe.data.prompted import Spoken
from jaxmoe.model.salmonn import Prompted, Salmonn

SHARPNESS = 20.0  # nats between a token and any other, where the connector gives the token's own embedding


def vocabulary(utterances: Iterable[Spoken]) -> np.ndarray:
    """The tokens [K] of all transcripts, sorted, without the one that ends an answer."""
    return np.unique([t for x in utterances for t in x.targets.get("asr", ())[:-1]])


def logits(speech: jax.Array, table: jax.Array) -> jax.Array:
    """How near speech [B, W, D] is to the blank and to each token's embedding in table [K, D] -> [B, W, K + 1].

    The logarithms, but for a constant, of normal densities around them.
    """
    speech, table = speech.astype(jnp.float32), table.astype(jnp.float32)
    blank = table.mean(axis=0, keepdims=True)
    spread = jnp.square(table - blank).sum(axis=1).mean()
    table = jnp.concatenate([blank, table])
    near = speech @ table.T - 0.5 * jnp.square(table).sum(axis=1)
    return near * (SHARPNESS / spread)


def ctc_nll(near: jax.Array, heard: jax.Array, labels: jax.Array, spelt: jax.Array) -> tuple[jax.Array, jax.Array]:
    """CTC's loss in nats, summed over the batch's transcripts, and their tokens.

    Transcripts that have no token, or more than there is speech, are left out of both.

    Args:
      near: [B, W, K + 1], logits, the blank's first.
      heard: [B, W], False for padding.
      labels: [B, N], 1 to K; spelt: [B, N], 1.0 where there is one, 0.0 for padding.
    """
    loss = optax.ctc_loss(near, 1.0 - heard.astype(jnp.float32), labels, 1.0 - spelt)
    count = spelt.sum(axis=1)
    again = ((labels[:, 1:] == labels[:, :-1]) * spelt[:, 1:]).sum(axis=1)  # equal neighbours need a blank between them
    fits = (count > 0) & (heard.sum(axis=1) >= count + again)
    return jnp.where(fits, loss, 0.0).sum(), jnp.where(fits, count, 0.0).sum()


def nll(
    model: Salmonn, tokens: np.ndarray, params: Any, base: Any, batch: Prompted, dropout: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """`ctc_nll` of a batch of transcripts, each ended by a token that is not spelt; tokens: `vocabulary`'s."""
    speech, heard = model.speech(base, params, batch, dropout)
    near = logits(speech, model.embed(base, jnp.asarray(tokens)))
    labels = jnp.searchsorted(jnp.asarray(tokens), batch.targets[:, :-1]) + 1
    return ctc_nll(near, heard, labels, batch.weights[:, 1:])  # the last token that counts is the end
