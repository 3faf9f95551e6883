"""Batches for the phases: utterances bucketed by length, in an order that is a function of the seed and the step alone.

The plan of an epoch (which utterances make up batch i, and the padded sizes) is computed by every process alike; a
process then reads its own rows. Grain keeps the position, so that training resumes exactly where it stopped.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import flax.struct
import grain.python as grain
import jax
import numpy as np

from jaxmoe.data.embeddings import Embeddings

Array = Any  # numpy on the host, jax.Array inside a step


class Batch(flax.struct.PyTreeNode):
    """Utterances of one step.

    Attributes:
      embedding: e [B, D], what the gate reads.
      latents: H [B, S, D], zero after the audio.
      mask: [B, S], True where latents may be attended to.
      tokens: [B, T], the decoder's input.
      targets: [B, T], the token after each input token.
      weights: [B, T], 1 where the target counts.
      posterior: [B, E], soft cluster membership by expert; a zero row where it is not known.
      index: [B], which of the utterances each row is.
    """

    embedding: Array
    latents: Array
    mask: Array
    tokens: Array
    targets: Array
    weights: Array
    posterior: Array
    index: Array


@dataclasses.dataclass(frozen=True)
class Utterances:
    """What training needs of a set of utterances, by row of `embeddings`."""

    embeddings: Embeddings
    rows: np.ndarray  # [U] rows of embeddings
    tokens: Sequence[Sequence[int]]  # [U] prompt + text + eot
    prompt_length: int  # tokens at the start that are given, not learnt
    posterior: np.ndarray  # [U, E]; zero rows where unknown
    given: bool = False  # whether the posterior is the routing, instead of what a gate makes of the embedding
    translations: Sequence[str] = ()  # [U] German references

    def gate_inputs(self, picked: np.ndarray) -> np.ndarray:
        """What the gate reads of the utterances `picked`: the pooled embedding [B, D], or the posterior [B, E]."""
        return self.posterior[picked] if self.given else self.embeddings.pooled[self.rows[picked]]

    def __len__(self) -> int:
        return len(self.rows)


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def bucket_sizes(lengths: np.ndarray, count: int, multiple: int) -> np.ndarray:
    """For each length the padded size of its bucket: `count` quantiles of the lengths, rounded up to `multiple`."""
    edges = np.quantile(lengths, np.arange(1, count + 1) / count, method="higher")
    edges = np.unique([_round_up(int(e), multiple) for e in edges])
    return edges[np.searchsorted(edges, lengths)]


class BatchSource:
    """Batch number -> Batch of numpy arrays: random access, so that Grain can prefetch and resume.

    Args:
      utterances: what to draw from.
      batch_size: utterances of the global batch.
      steps: how many batches there are.
      seed: of the order; each epoch has its own.
      buckets: how many padded sizes of latents; each costs one compilation.
      latents: whether batches carry latents; without, S is 0 and there is one bucket.
      process: (index, count); it reads every count-th row of a batch. JAX's own by default.
    """

    def __init__(
        self,
        utterances: Utterances,
        *,
        batch_size: int,
        steps: int,
        seed: int,
        buckets: int = 3,
        latents: bool = True,
        process: tuple[int, int] | None = None,
    ):
        if len(utterances) < 1:
            raise ValueError("no utterances to train on.")
        self.utterances = utterances
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed
        self.process = process or (jax.process_index(), jax.process_count())
        if batch_size % self.process[1]:
            raise ValueError(
                f"batch_size={batch_size} does not divide over {self.process[1]} processes."
            )
        lengths = np.array([utterances.embeddings.length(r) for r in utterances.rows]) * latents
        self.sizes = bucket_sizes(lengths, buckets, 50)  # [U], 50 positions are a second
        tokens = np.array([len(t) - 1 for t in utterances.tokens])
        longest = {s: _round_up(int(tokens[self.sizes <= s].max()), 8) for s in set(self.sizes)}
        self.token_sizes = longest
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])

    def __len__(self) -> int:
        return self.steps

    def _plan(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch: a shuffle, sorted stably by bucket and cut; the rest of under a batch waits for
        another epoch's shuffle, unless it is all there is."""
        if self._epoch[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            u, b = len(self.utterances), self.batch_size
            order = rng.permutation(u)
            if u < b:
                order = np.resize(order, b)
            order = order[: len(order) // b * b]
            order = order[np.argsort(self.sizes[order], kind="stable")]
            batches = list(order.reshape(-1, b))
            self._epoch = (epoch, [batches[i] for i in rng.permutation(len(batches))])
        return self._epoch[1]

    @property
    def batches_per_epoch(self) -> int:
        return max(len(self.utterances) // self.batch_size, 1)

    def __getitem__(self, step: int) -> Batch:
        epoch, i = divmod(int(step), self.batches_per_epoch)
        picked = self._plan(epoch)[i]
        size = int(self.sizes[picked].max())
        index, count = self.process
        return collate(self.utterances, picked[index::count], size, self.token_sizes[size])


def collate(utterances: Utterances, picked: np.ndarray, size: int, token_size: int) -> Batch:
    """One batch of the utterances `picked`, padded to `size` latents and `token_size` tokens."""
    u = utterances
    width = u.embeddings.depths.shape[-1]
    b = len(picked)
    latents = np.zeros((b, size, width), np.float32)
    mask = np.zeros((b, size), bool)
    tokens = np.full((b, token_size), u.tokens[picked[0]][-1], np.int32)  # padded with eot
    targets = np.array(tokens)
    weights = np.zeros((b, token_size), np.float32)
    for i, p in enumerate(picked):
        if size:
            h = u.embeddings.latents(u.rows[p])
            latents[i, : len(h)], mask[i, : len(h)] = h, True
        ids = u.tokens[p]
        n = len(ids) - 1
        tokens[i, :n], targets[i, :n] = ids[:-1], ids[1:]
        weights[i, u.prompt_length - 1 : n] = 1.0
    embedding = u.gate_inputs(picked).astype(np.float32)
    posterior = u.posterior[picked].astype(np.float32)
    return Batch(embedding, latents, mask, tokens, targets, weights, posterior, np.asarray(picked, np.int32))


def iterate(source: Any) -> grain.DatasetIterator:
    """An iterator over `source` (batches by step) that reads ahead in threads, its position checkpointed."""
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))
