"""Clusters how utterances are said: middle-layer embeddings, reduced, then HDBSCAN.

Reads   WORKDIR/corpus, WORKDIR/embeddings
Writes  WORKDIR/clusters/assignments.jsonl  id, cluster (-1 noise), membership by expert, whether it was fitted on
        WORKDIR/clusters/clusters.json      quality figures
        WORKDIR/clusters/map.json, clusters.png

Fitted on the pre-training sample of train; everything else is assigned to the clusters found. Etiology and the other
labels are only compared with the result, they choose nothing.
"""

import json
from pathlib import Path
from typing import Any
import warnings

from ml_collections import ConfigDict
import numpy as np

from jaxmoe.data import prepared
from jaxmoe.data.embeddings import Embeddings
from jaxmoe.train.setup import embeddings_folder

SPLITS = ("train", "validation", "evaluation")
LABELS = {k: k for k in ("etiology", "severity", "speaker", "channel")} | {"sentence": "prompt"}


class Reducer:
    """Standardise, PCA, UMAP: fitted on one set of features, applied to others."""

    def __init__(self, *, pca: int, umap_dim: int, neighbors: int, seed: int):
        from sklearn.decomposition import PCA
        from sklearn.preprocessing import StandardScaler

        self.scale, self.seed = StandardScaler(), seed
        self.pca = PCA(pca, svd_solver="full")
        self.umap_dim, self.neighbors = umap_dim, neighbors
        self.umap: Any = None

    def fit(self, features: np.ndarray) -> np.ndarray:
        """Features [U, D] -> reduced [U, umap_dim]; umap_dim 0 stops after the PCA."""
        self.pca.n_components = min(self.pca.n_components, *features.shape)
        x = self.pca.fit_transform(self.scale.fit_transform(features))
        if not self.umap_dim:
            return x
        from umap import UMAP

        self.umap = UMAP(
            n_components=self.umap_dim,
            n_neighbors=min(self.neighbors, len(x) - 1),
            min_dist=0.0,
            random_state=self.seed,
            n_jobs=1,
        )
        return self.umap.fit_transform(x)

    def apply(self, features: np.ndarray) -> np.ndarray:
        x = self.pca.transform(self.scale.transform(features))
        return x if self.umap is None else self.umap.transform(x)


def fit_hdbscan(points: np.ndarray, min_cluster_share: float, min_samples: int, selection: str) -> Any:
    """HDBSCAN (McInnes et al. 2017) whose smallest cluster scales with the number of points.

    selection: of the tree's clusters, "leaf" or "eom". Excess of mass often keeps one cluster of most points and jumps
    from 2 to 15 clusters between seeds of the reduction; the leaves are as good by every figure and stay alike.
    """
    import hdbscan

    size = max(round(min_cluster_share * len(points)), 3)
    return hdbscan.HDBSCAN(
        min_cluster_size=size,
        min_samples=min_samples,
        cluster_selection_method=selection,
        prediction_data=True,
        core_dist_n_jobs=1,
    ).fit(np.asarray(points, np.float64))


def merge_to(points: np.ndarray, labels: np.ndarray, experts: int) -> dict[int, int]:
    """Cluster -> expert. Up to `experts` clusters keep their number; beyond, the nearest centres (Ward) are merged."""
    found = sorted(set(labels[labels >= 0].tolist()))
    if len(found) <= experts:
        return {c: c for c in found}
    from sklearn.cluster import AgglomerativeClustering

    centres = np.stack([points[labels == c].mean(0) for c in found])
    merged = AgglomerativeClustering(experts).fit_predict(centres)
    return dict(zip(found, merged.tolist(), strict=True))


def memberships(clusterer: Any, points: np.ndarray | None, mapping: dict[int, int], experts: int) -> np.ndarray:
    """Soft membership by expert [U, E], rows summing to 1; points None means those fitted on."""
    import hdbscan

    with np.errstate(divide="ignore", invalid="ignore"):
        if points is None:
            soft = hdbscan.all_points_membership_vectors(clusterer)
        else:
            soft = hdbscan.membership_vector(clusterer, np.asarray(points, np.float64))
    soft = np.nan_to_num(np.atleast_2d(soft)).reshape(-1, max(len(mapping), 1))
    out = np.zeros((len(soft), experts))
    for column, expert in enumerate(mapping[c] for c in sorted(mapping)):
        out[:, expert] += soft[:, column]
    total = out.sum(1, keepdims=True)
    live = np.isin(np.arange(experts), list(mapping.values())) / max(len(set(mapping.values())), 1)
    return np.where(total > 1e-12, out / np.maximum(total, 1e-12), live)


def posterior(labels: np.ndarray, soft: np.ndarray, mapping: dict[int, int], noise: str) -> np.ndarray:
    """What the gate is taught [U, E]: one-hot clusters; noise by its membership ("soft") or left out ("drop")."""
    out = np.zeros_like(soft)
    for i, c in enumerate(labels):
        if c >= 0:
            out[i, mapping[int(c)]] = 1.0
        elif noise == "soft":
            out[i] = soft[i]
    return out


def figures(labels: np.ndarray, items: list[dict]) -> dict[str, float]:
    """Adjusted mutual information of the clusters with what is known of each utterance; noise is a class of its own."""
    from sklearn.metrics import adjusted_mutual_info_score

    return {k: float(adjusted_mutual_info_score([x[f] for x in items], labels)) for k, f in LABELS.items()}


def draw(path: Path, xy: np.ndarray, items: list[dict], labels: np.ndarray) -> None:
    """A map of the utterances, coloured by cluster and by each label."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {"cluster": [str(c) for c in labels], **{k: [x[f] for x in items] for k, f in LABELS.items()}}
    figure, axes = plt.subplots(2, 3, figsize=(15, 9), constrained_layout=True)
    for axis, (title, values) in zip(axes.flat, panels.items(), strict=True):
        names = sorted(set(values))
        colours = plt.get_cmap("turbo")(np.linspace(0.05, 0.95, len(names)))
        for name, colour in zip(names, colours, strict=True):
            chosen = np.array([v == name for v in values])
            axis.scatter(*xy[chosen].T, s=9, color=colour, label=name if len(names) <= 12 else None)
        axis.set(title=f"{title} ({len(names)})", xticks=[], yticks=[])
        if len(names) <= 12:
            axis.legend(fontsize=7, markerscale=1.5, frameon=False)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def load(workdir: Path, backbone: str, layer: int) -> tuple[list[dict], np.ndarray, np.ndarray]:
    """All embedded utterances: metadata, features [U, D] of a depth (0 embedding output, i block i, -1 final norm),
    and whether each is in the pre-training sample."""
    items, features, fitted = [], [], []
    for split in SPLITS:
        embeddings = Embeddings(embeddings_folder(workdir, backbone, split))
        for item in prepared.open_metadata(workdir, split):
            if item["id"] in embeddings.row:
                items.append(item | {"split": split})
                features.append(embeddings.depths[embeddings.row[item["id"]], layer])
                fitted.append(split == "train" and bool(item["pretrain"]))
    return items, np.stack(features), np.array(fitted)


def run(config: ConfigDict, workdir: Path) -> None:
    c, experts = config.cluster, config.model.num_experts
    items, features, fitted = load(workdir, config.model.backbone, c.layer)
    reducer = Reducer(pca=c.pca, umap_dim=c.umap_dim, neighbors=c.neighbors, seed=config.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # UMAP on one thread says so at every seed
        points = reducer.fit(features[fitted])
        others = reducer.apply(features[~fitted])
    clusterer = fit_hdbscan(points, c.min_cluster_share, c.min_samples, c.selection)
    labels = np.full(len(items), -1)
    labels[fitted] = clusterer.labels_
    mapping = merge_to(points, clusterer.labels_, experts)
    if not mapping:
        raise ValueError(
            f"HDBSCAN found no cluster in {fitted.sum()} utterances; lower config.cluster.min_cluster_share "
            f"({c.min_cluster_share}) or raise config.data.pretrain_share ({config.data.pretrain_share})."
        )
    import hdbscan

    labels[~fitted] = hdbscan.approximate_predict(clusterer, np.asarray(others, np.float64))[0]
    soft = np.zeros((len(items), experts))
    soft[fitted] = memberships(clusterer, None, mapping, experts)
    soft[~fitted] = memberships(clusterer, others, mapping, experts)
    xy = np.zeros((len(items), 2))
    xy[fitted], xy[~fitted] = points[:, :2], others[:, :2]
    write(workdir / "clusters", items, labels, posterior(labels, soft, mapping, c.noise), fitted, xy, clusterer)


def write(
    folder: Path,
    items: list[dict],
    labels: np.ndarray,
    taught: np.ndarray,
    fitted: np.ndarray,
    xy: np.ndarray,
    clusterer: Any,
) -> None:
    """Writes the files of the phase and prints the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "assignments.jsonl").open("w") as f:
        for item, label, row, fit in zip(items, labels, taught, fitted, strict=True):
            line = {"id": item["id"], "cluster": int(label), "membership": row.round(6).tolist(), "fitted": bool(fit)}
            f.write(json.dumps(line) + "\n")
    inside = [x for x, fit in zip(items, fitted, strict=True) if fit]
    outside = [(x, c) for x, c in zip(items, labels, strict=True) if x["split"] == "evaluation"]
    found = labels[fitted]
    summary = {
        "found": int(found.max() + 1),
        "noise_share": float((found < 0).mean()),
        "sizes": np.bincount(found[found >= 0]).tolist(),
        "utterances": len(inside),
        "ami": figures(found, inside),
        "ami_evaluation": figures(np.array([c for _, c in outside]), [x for x, _ in outside]),
        "relative_validity": float(getattr(clusterer, "relative_validity_", np.nan)),
    }
    (folder / "clusters.json").write_text(json.dumps(summary, indent=2))
    names = {"etiology", "severity", "voice", "speaker", "channel"}
    points = [
        {"x": float(p[0]), "y": float(p[1]), "id": x["id"], "cluster": int(c), "sentence": x["prompt"]}
        | {k: x[k] for k in sorted(names)}
        for p, x, c in zip(xy, items, labels, strict=True)
    ]
    (folder / "map.json").write_text(json.dumps({"points": points}))
    draw(folder / "clusters.png", xy[fitted], inside, found)
    ami = ", ".join(f"{k} {v:.2f}" for k, v in summary["ami"].items())
    print(f"{summary['found']} clusters, {summary['noise_share']:.0%} noise; AMI with {ami}")
