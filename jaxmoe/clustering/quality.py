"""Whether clusters mean something: agreement with what is known, density, stability, and what the channel tells."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any
import warnings

import numpy as np

LABELS = {k: k for k in ("etiology", "severity", "voice", "speaker", "channel")} | {"sentence": "prompt"}
OF_SPEAKERS = ("etiology", "severity", "voice", "channel")


def agreement(labels: np.ndarray, items: Sequence[dict]) -> dict[str, float]:
    """Adjusted mutual information (Vinh et al. 2010) of clusters [U] with each of LABELS; noise is a class."""
    from sklearn.metrics import adjusted_mutual_info_score as ami

    return {k: float(ami([x[f] for x in items], labels)) for k, f in LABELS.items()}


def agreement_of_speakers(labels: np.ndarray, items: Sequence[dict]) -> dict[str, float]:
    """The same for OF_SPEAKERS, with every speaker counted once, by their commonest cluster and label.

    A speaker's recordings share label and cluster. Counted one by one, as if they had nothing to do with each other,
    they agree with channels dealt to the speakers at random as well: by .2, for 66 speakers, 8 channels, 8 clusters.
    """
    from sklearn.metrics import adjusted_mutual_info_score as ami

    rows: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        rows.setdefault(item["speaker"], []).append(i)

    def of(values: Sequence[Any]) -> list[Any]:
        return [Counter(values[i] for i in mine).most_common(1)[0][0] for mine in rows.values()]

    return {k: float(ami(of([x[k] for x in items]), of(labels.tolist()))) for k in OF_SPEAKERS}


def density(points: np.ndarray, labels: np.ndarray) -> float:
    """DBCV (Moulavi et al. 2014), -1 to 1, of the clusters without noise; nan where it has no value."""
    import hdbscan

    if labels.max() < 1 or np.bincount(labels[labels >= 0]).min() < 3:  # two have no tree inside
        return float("nan")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return float(hdbscan.validity.validity_index(np.asarray(points, np.float64), labels))


def stability(
    refit: Callable[[int, np.ndarray], np.ndarray], labels: np.ndarray, speakers: np.ndarray, repeats: int = 3
) -> dict[str, float]:
    """Mean adjusted Rand index of the labels with those found again.

    Args:
      refit: (seed, utterances kept) -> their labels.
      labels: [U] as found.
      speakers: [U] numbers; a subsample takes four speakers of five.

    Returns:
      {"seeds": other seeds of the reduction, "subsamples": other seeds and fewer speakers}
    """
    everything = np.arange(len(labels))
    seeds, subsamples = [], []
    for n in range(1, repeats + 1):
        seeds.append(adjusted_rand(labels, refit(n, everything)))
        rng, count = np.random.default_rng(n), speakers.max() + 1
        kept = np.flatnonzero(np.isin(speakers, rng.permutation(count)[: max(int(0.8 * count), 1)]))
        subsamples.append(adjusted_rand(labels[kept], refit(n, kept)))
    return {"seeds": float(np.mean(seeds)), "subsamples": float(np.mean(subsamples))}


def adjusted_rand(first: np.ndarray, second: np.ndarray) -> float:
    """Adjusted Rand index (Hubert and Arabie 1985) of two labelings: 1 for the same grouping, 0 for chance."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(first, second))


def probe(train: np.ndarray, known: Sequence[Any], test: np.ndarray, expected: Sequence[Any]) -> dict[str, float]:
    """How well the 10 nearest neighbours tell a label of speakers they have not heard, and how well its commonest value
    would: {"accuracy", "chance"}."""
    from sklearn.neighbors import KNeighborsClassifier

    neighbours = KNeighborsClassifier(min(10, len(train))).fit(train, list(known))
    _, counts = np.unique(list(expected), return_counts=True)
    return {
        "accuracy": float(neighbours.score(test, list(expected))),
        "chance": float(counts.max() / counts.sum()),
    }
