"""Clustering methods, and what they say of each unit as a soft membership by expert.

Shapes: N units, C clusters found, E experts.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any
import zlib

import numpy as np

MIN_UNITS = 6  # two clusters of HDBSCAN's smallest
METHODS = ("hdbscan", "kmeans", "spectral", "etiology", "random")


@dataclasses.dataclass
class Clusters:
    """Clusters of the units they were fitted on.

    labels: [N], -1 for noise. soft: [N, C], rows summing to 1.
    """

    labels: np.ndarray
    soft: np.ndarray
    points: np.ndarray
    hdbscan: Any = None

    def assign(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels [N'] and soft memberships [N', C] of other points: HDBSCAN's own, else the nearest centre."""
        if self.hdbscan is not None:
            import hdbscan

            return hdbscan.approximate_predict(self.hdbscan, points)[0], _memberships(self.hdbscan, points)
        centres = np.stack([self.points[self.labels == c].mean(0) for c in range(self.labels.max() + 1)])
        labels = ((points[:, None] - centres[None]) ** 2).sum(-1).argmin(1)
        return labels, np.eye(len(centres))[labels]


def fit(
    method: str,
    points: np.ndarray,
    *,
    num_clusters: int,
    min_cluster_share: float,
    min_samples: int,
    selection: str,
    seed: int,
) -> Clusters:
    """Clusters of points [N, d].

    Args:
      num_clusters: of kmeans and spectral, which must be told; never as many as there are points.
      min_cluster_share, min_samples, selection: of HDBSCAN, which finds how many there are.

    Where HDBSCAN finds nothing but noise, or there are too few points for two clusters, all are one cluster, and a
    warning says so: the mixture is then its shared path and one expert.

    Raises:
      ValueError: an unknown method.
    """
    if method == "hdbscan":
        clusterer = fit_hdbscan(points, min_cluster_share, min_samples, selection) if len(points) >= MIN_UNITS else None
        if clusterer is not None and clusterer.labels_.max() >= 0:
            return Clusters(clusterer.labels_, _memberships(clusterer, None), points, clusterer)
        print(
            f"WARNING cluster: HDBSCAN finds no groups in {len(points)} units (speakers, unless "
            "config.cluster.by_speaker=False); all are one cluster, and one expert learns them. More speakers, a lower "
            f"config.cluster.min_cluster_share ({min_cluster_share}), a higher config.data.pretrain_share or "
            "config.cluster.method=kmeans may find some."
        )
        return Clusters(np.zeros(len(points), int), np.ones((len(points), 1)), points)
    if method not in ("kmeans", "spectral"):
        raise ValueError(f"config.cluster.method={method!r}; expected one of {', '.join(METHODS)}.")
    from sklearn.cluster import KMeans, SpectralClustering

    num_clusters, near = min(num_clusters, max(len(points) - 1, 1)), min(10, len(points))
    model = (
        KMeans(num_clusters, n_init=10, random_state=seed)
        if method == "kmeans"
        else SpectralClustering(num_clusters, affinity="nearest_neighbors", n_neighbors=near, random_state=seed)
    )
    labels = model.fit_predict(points)
    return Clusters(labels, np.eye(labels.max() + 1)[labels], points)


def fit_hdbscan(points: np.ndarray, min_cluster_share: float, min_samples: int, selection: str) -> Any:
    """HDBSCAN (McInnes et al. 2017) whose smallest cluster scales with the number of units; selection "eom" or
    "leaf"."""
    import hdbscan

    return hdbscan.HDBSCAN(
        min_cluster_size=max(round(min_cluster_share * len(points)), 3),
        min_samples=min_samples,
        cluster_selection_method=selection,
        prediction_data=True,
        gen_min_span_tree=True,  # for DBCV
        core_dist_n_jobs=1,
    ).fit(np.asarray(points, np.float64))


def _memberships(clusterer: Any, points: np.ndarray | None) -> np.ndarray:
    """HDBSCAN's soft memberships [N, C], rows summing to 1; points None means those fitted on."""
    import hdbscan

    found = clusterer.labels_.max() + 1
    with np.errstate(divide="ignore", invalid="ignore"):
        if points is None:
            soft = hdbscan.all_points_membership_vectors(clusterer)
        else:
            soft = hdbscan.membership_vector(clusterer, np.asarray(points, np.float64))
    soft = np.nan_to_num(np.atleast_2d(soft)).reshape(-1, found)
    total = soft.sum(1, keepdims=True)
    return np.where(total > 1e-12, soft / np.maximum(total, 1e-12), 1.0 / found)


def merge_to(points: np.ndarray, labels: np.ndarray, experts: int) -> np.ndarray:
    """Expert of each cluster [C]: up to `experts` clusters keep their number; beyond, the nearest centres (Ward) are
    merged."""
    found = labels.max() + 1
    if found <= experts:
        return np.arange(found)
    from sklearn.cluster import AgglomerativeClustering

    centres = np.stack([points[labels == c].mean(0) for c in range(found)])
    return AgglomerativeClustering(experts).fit_predict(centres)


def posterior(labels: np.ndarray, soft: np.ndarray, mapping: np.ndarray, experts: int, noise: str) -> np.ndarray:
    """What the gate is taught [N, E].

    noise: "soft" for one-hot clusters and noise by its membership, "drop" to leave noise out (a zero row), "membership"
    for soft memberships throughout. Noise never becomes cluster 0 in silence.
    """
    by_expert = np.zeros((len(soft), experts))
    np.add.at(by_expert.T, mapping, soft.T)
    if noise == "membership":
        return by_expert
    out = np.zeros_like(by_expert)
    known = labels >= 0
    out[known, mapping[labels[known]]] = 1.0
    if noise == "soft":
        out[~known] = by_expert[~known]
    return out


def given(method: str, etiologies: Sequence[str], speakers: Sequence[str], experts: int, seed: int) -> np.ndarray:
    """Labels that look at no sound, for ablations: the etiology itself, or a cluster drawn for each speaker."""
    if method == "etiology":
        names = sorted(set(etiologies))
        return np.array([names.index(e) % experts for e in etiologies])
    return np.array([zlib.crc32(f"{seed}/{s}".encode()) % experts for s in speakers])
