"""Batches for the phases: utterances bucketed by length, in an order that is a function of the seed and the step alone.

The plan of an epoch (which utterances make up batch i, and the padded sizes) is computed by every process alike; a
process then reads its own rows. Grain keeps the position, so that training resumes exactly where it stopped.
"""

from collections.abc import Iterator, Sequence
import dataclasses
from typing import Any

import flax.struct
import grain.python as grain
import jax
import numpy as np

from jaxmoe.data.embeddings import Embeddings

Array = Any  # numpy on the host, jax.Array inside a step
PADDING = 0.12  # of a bucket; batches that hold the last of one bucket and the first of the next add to it
TOKEN_PADDING = 0.3  # less would cost more compilations than it saves
MAX_BUCKETS = 12
BATCHES_PER_BUCKET = 8  # in an epoch: with fewer, compiling takes longer than padding


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
    speakers: Sequence[str] = ()  # [U], whose they are
    left_out: Sequence[dict[str, str]] = ()  # what is not among them: id, split, reason
    groups: Sequence[str] = ()  # [U], where given every group is drawn equally often

    def gate_inputs(self, picked: np.ndarray) -> np.ndarray:
        """What the gate reads of the utterances `picked`: the pooled embedding [B, D], or the posterior [B, E]."""
        return self.posterior[picked] if self.given else self.embeddings.pooled[self.rows[picked]]

    def __len__(self) -> int:
        return len(self.rows)


def bucket_sizes(
    lengths: np.ndarray, multiple: int, *, padding: float = PADDING, most: int = MAX_BUCKETS
) -> np.ndarray:
    """For each length the padded size of its bucket: the fewest buckets that keep padding under a share of the whole.

    The sizes are the best there are of their number, by dynamic programming over the lengths rounded up to `multiple`.

    Args:
      padding: share of all padded positions that may be padding; met unless it takes more than `most` buckets.
    """
    sizes, which = np.unique(-(-lengths // multiple) * multiple, return_inverse=True)
    count, real = np.bincount(which), lengths.sum()
    before = np.concatenate([[0], np.cumsum(count)])  # utterances shorter than each size
    # cost[j]: positions that sizes up to the j-th take in the buckets so far; a bucket (i, j] pads all to sizes[j - 1].
    take = (before[None, 1:] - before[:-1, None]) * sizes[None, :]  # [i, j - 1]
    take = np.where(np.arange(len(sizes))[:, None] <= np.arange(len(sizes))[None, :], take, np.inf)
    cost = np.concatenate([[0.0], np.full(len(sizes), np.inf)])
    starts: list[np.ndarray] = []
    for _ in range(min(most, len(sizes))):
        total = cost[:-1, None] + take  # [i, j - 1]
        starts.append(total.argmin(0))
        cost = np.concatenate([[np.inf], total.min(0)])
        if cost[-1] - real <= padding * cost[-1]:
            break
    chosen, j = [], len(sizes)
    for start in reversed(starts):
        chosen.append(sizes[j - 1])
        j = int(start[j - 1])
    edges = np.array(chosen[::-1])
    return edges[np.searchsorted(edges, lengths)]


UNKNOWN = ("", "unknown")


def draws_per_epoch(groups: Sequence[str]) -> np.ndarray:
    """How often each utterance is drawn in an epoch, on average, float [U] of mean 1.

    Known groups share their draws equally, whatever their sizes; utterances of no known group are drawn once.
    """
    names, which, counts = np.unique(groups, return_inverse=True, return_counts=True)
    known = ~np.isin(names, UNKNOWN)
    draws = np.ones(len(names))
    draws[known] = counts[known].sum() / (known.sum() * counts[known])
    return draws[which]


def draw(groups: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """An epoch of utterances [U], each drawn draws_per_epoch times rounded down or up (systematic sampling).

    The groups' shares are therefore exact to one utterance, in every epoch.
    """
    order = rng.permutation(len(groups))
    order = order[np.argsort(np.asarray(groups)[order], kind="stable")]
    ends = np.cumsum(draws_per_epoch(groups)[order])
    at = np.searchsorted(ends, np.arange(len(order)) + rng.random(), side="right")
    return rng.permutation(order[np.minimum(at, len(order) - 1)])  # the sum of U weights rounds


class BatchSource:
    """Batch number -> Batch of numpy arrays: random access, so that Grain can prefetch and resume.

    Args:
      utterances: what to draw from.
      batch_size: utterances of the global batch.
      steps: how many batches there are.
      seed: of the order; each epoch has its own.
      buckets: at most so many padded sizes of latents, and of tokens for each; each pair costs one compilation.
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
        buckets: int = MAX_BUCKETS,
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
            raise ValueError(f"batch_size={batch_size} does not divide over {self.process[1]} processes.")
        lengths = np.array([utterances.embeddings.length(r) for r in utterances.rows]) * latents
        buckets = min(buckets, max(self.batches_per_epoch // BATCHES_PER_BUCKET, 1))
        self.sizes = bucket_sizes(lengths, 10, most=buckets)  # [U], 50 positions are a second
        self.token_sizes = np.zeros_like(self.sizes)  # [U]
        tokens = np.array([len(t) - 1 for t in utterances.tokens])
        for size in np.unique(self.sizes):
            of_size = self.sizes == size
            self.token_sizes[of_size] = bucket_sizes(tokens[of_size], 4, padding=TOKEN_PADDING, most=min(buckets, 2))
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])

    def __len__(self) -> int:
        return self.steps

    def _plan(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch: a shuffle, sorted stably by bucket and cut; the rest of under a batch waits for
        another epoch's shuffle, unless it is all there is."""
        found = self._epoch  # as it is now: other threads read other epochs
        if found[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            u, b = len(self.utterances), self.batch_size
            order = draw(self.utterances.groups, rng) if len(self.utterances.groups) else rng.permutation(u)
            if u < b:
                order = np.resize(order, b)
            order = order[: len(order) // b * b]
            order = order[np.lexsort((self.token_sizes[order], self.sizes[order]))]  # stable
            batches = list(order.reshape(-1, b))
            self._epoch = found = (epoch, [batches[i] for i in rng.permutation(len(batches))])
        return found[1]

    @property
    def batches_per_epoch(self) -> int:
        return max(len(self.utterances) // self.batch_size, 1)

    def __getitem__(self, step: int) -> Batch:
        epoch, i = divmod(int(step), self.batches_per_epoch)
        picked = self._plan(epoch)[i]
        index, count = self.process
        sizes = int(self.sizes[picked].max()), int(self.token_sizes[picked].max())
        return collate(self.utterances, picked[index::count], *sizes)

    def padding(self, epoch: int = 0) -> tuple[float, float]:
        """Shares of an epoch's latents and of its tokens that are padding."""
        plan = self._plan(epoch)
        real = np.array([self.utterances.embeddings.length(r) for r in self.utterances.rows])
        tokens = np.array([len(t) - 1 for t in self.utterances.tokens])
        shares = [
            1 - sum(length[p].sum() for p in plan) / sum(len(p) * size[p].max() for p in plan)
            for length, size in ((real, self.sizes), (tokens, self.token_sizes))
            if size.any()
        ]
        return (shares[0], shares[1]) if len(shares) == 2 else (0.0, shares[0])


def every_utterance(utterances: Utterances, batch_size: int) -> Iterator[Batch]:
    """Each utterance once, all batches of one shape: the last is filled up with rows whose tokens weigh nothing."""
    lengths = np.array([utterances.embeddings.length(r) for r in utterances.rows])
    size, token_size = -(-lengths.max() // 10) * 10, -(-max(len(t) - 1 for t in utterances.tokens) // 4) * 4
    for start in range(0, len(utterances), batch_size):
        picked = np.arange(start, start + batch_size)
        batch = collate(utterances, picked % len(utterances), size, token_size)
        yield batch.replace(weights=batch.weights * (picked < len(utterances))[:, None])


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
