"""Clusters how people speak: middle-layer embeddings without channel and voice, averaged by speaker, then HDBSCAN.

Reads   WORKDIR/corpus, WORKDIR/embeddings
Writes  WORKDIR/clusters/assignments.jsonl  id, cluster (-1 noise), membership by expert, whether it was fitted on
        WORKDIR/clusters/clusters.json      quality figures
        WORKDIR/clusters/map.json, clusters.png

Fitted on the pre-training sample of train; everything else is assigned to the clusters found. Etiology and the other
labels are only compared with the result, they choose nothing (methods "etiology" and "random" are for ablations).
"""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from jaxmoe.clustering import methods, quality
from jaxmoe.clustering.features import Space
from jaxmoe.data import prepared
from jaxmoe.data.embeddings import Embeddings, load_variants, with_windows
from jaxmoe.train.setup import embeddings_folder, load_backbone

SPLITS = ("train", "validation", "evaluation")


def draw(path: Path, xy: np.ndarray, items: list[dict], labels: np.ndarray) -> None:
    """A map of the utterances, coloured by cluster and by each label."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {"cluster": [str(c) for c in labels], **{k: [x[f] for x in items] for k, f in quality.LABELS.items()}}
    figure, axes = plt.subplots(2, 4, figsize=(19, 9), constrained_layout=True)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, values) in zip(axes.flat, panels.items(), strict=False):
        names = sorted(set(values))
        colours = plt.get_cmap("turbo")(np.linspace(0.05, 0.95, len(names)))
        for name, colour in zip(names, colours, strict=True):
            chosen = np.array([v == name for v in values])
            axis.scatter(*xy[chosen].T, s=9, color=colour, label=name if len(names) <= 12 else None)
        axis.set(title=f"{title} ({len(names)})", xticks=[], yticks=[])
        if len(names) <= 12 and any(names):
            axis.legend(fontsize=7, markerscale=1.5, frameon=False)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def pooled(depths: np.ndarray, pooling: str) -> np.ndarray:
    """Means and standard deviations [..., 2, D] -> features [..., D] ("mean") or [..., 2 D] ("mean+std")."""
    if pooling not in ("mean", "mean+std"):
        raise ValueError(f"config.cluster.pooling={pooling!r}: expected mean or mean+std.")
    return depths[..., 0, :] if pooling == "mean" else depths.reshape(*depths.shape[:-2], -1)


def load(workdir: Path, backbone: str, layer: int, pooling: str) -> tuple[list[dict], np.ndarray, np.ndarray]:
    """All embedded utterances, of long recordings their windows: metadata, features [U, F] of a depth (0 embedding
    output, i block i, -1 final norm), and whether each is in the pre-training sample."""
    items, features, fitted = [], [], []
    for split in SPLITS:
        folder = embeddings_folder(workdir, backbone, split)
        embeddings = Embeddings(folder)
        for item in with_windows(prepared.open_metadata(workdir, split), folder):
            if item["id"] in embeddings.row and item["text"]:  # a window may hold no speech
                items.append(item | {"split": split})
                features.append(pooled(embeddings.depths[embeddings.row[item["id"]], layer], pooling))
                fitted.append(split == "train" and bool(item["pretrain"]))
    return items, np.stack(features), np.array(fitted)


def text_features(config: ConfigDict, items: list[dict]) -> np.ndarray:
    """Mean token embedding of each transcript and its number of tokens [U, D + 1], for Space.remove_text."""
    backbone = load_backbone(config)
    table = np.asarray(backbone.base["decoder"]["token_embedding"]["embedding"], np.float32)
    ids = [backbone.tokenizer.encode(" " + x["text"].strip()) for x in items]
    return np.stack([np.append(table[i].mean(0), len(i)) for i in ids])


class Grouping:
    """The utterances of a run in the space of config.cluster, and the clusters found there."""

    def __init__(self, config: ConfigDict, workdir: Path):
        c = config.cluster
        self.config, self.backbone = config, config.model.backbone
        self.items, self.features, self.fitted = load(workdir, self.backbone, c.layer, c.pooling)
        variants = load_variants(workdir / "embeddings" / Path(self.backbone).name)
        self.variants = [pooled(v[:, :, c.layer], c.pooling) for v in variants]
        self.text = text_features(config, self.items) if c.remove_text else None
        self.speakers = np.array([x["speaker"] for x in self.items], dtype=object)

    def fit(self, chosen: np.ndarray, seed: int) -> tuple[Space, methods.Clusters, np.ndarray, np.ndarray]:
        """Space, clusters of its units, points of the units, and each chosen utterance's unit."""
        c = self.config.cluster
        space = Space(
            c.nuisance, c.remove_text, c.by_speaker, c.pca, c.umap_dim, c.neighbors, seed
        )
        text = None if self.text is None else self.text[chosen]
        points, unit = space.fit(self.features[chosen], self.speakers[chosen], self.variants, text)
        clusters = methods.fit(
            c.method,
            points,
            num_clusters=self.config.model.num_experts,
            min_cluster_share=c.min_cluster_share,
            min_samples=c.min_samples,
            selection=c.selection,
            seed=seed,
        )
        return space, clusters, points, unit

    def place(self, space: Space, clusters: methods.Clusters, chosen: np.ndarray) -> tuple[np.ndarray, ...]:
        """(labels [U'], soft memberships [U', C], points [U', d]) of utterances that were not fitted on."""
        text = None if self.text is None else self.text[chosen]
        points, unit = space.apply(self.features[chosen], self.speakers[chosen], text)
        labels, soft = clusters.assign(points)
        return labels[unit], soft[unit], points[unit]


def run(config: ConfigDict, workdir: Path) -> None:
    c, experts = config.cluster, config.model.num_experts
    group = Grouping(config, workdir)
    inside, outside = np.flatnonzero(group.fitted), np.flatnonzero(~group.fitted)
    if c.method in ("etiology", "random"):
        etiologies = [x["etiology"] for x in group.items]
        labels = methods.given(c.method, etiologies, list(group.speakers), experts, config.seed)
        write(workdir / "clusters", group, labels, np.eye(experts)[labels], np.zeros((len(labels), 2)), {})
        return
    space, clusters, points, unit = group.fit(inside, config.seed)
    mapping = methods.merge_to(points, clusters.labels, experts)
    utterances, found = len(group.items), clusters.soft.shape[1]
    labels, soft, xy = np.empty(utterances, int), np.empty((utterances, found)), np.empty((utterances, 2))
    labels[inside], soft[inside], xy[inside] = clusters.labels[unit], clusters.soft[unit], points[unit, :2]
    labels[outside], soft[outside], far = group.place(space, clusters, outside)
    xy[outside] = far[:, :2]
    taught = methods.posterior(labels, soft, mapping, experts, c.noise)
    _, speaker = np.unique(group.speakers[inside].astype(str), return_inverse=True)

    def refit(seed: int, kept: np.ndarray) -> np.ndarray:
        _, again, _, unit = group.fit(inside[kept], seed)
        return again.labels[unit]

    figures = {
        "dbcv": quality.density(points, clusters.labels),
        "stability": quality.stability(refit, labels[inside], speaker),
        "channel_probe": channel_probe(group, space),
    }
    write(workdir / "clusters", group, labels, taught, xy, figures)


def channel_probe(group: Grouping, space: Space) -> dict[str, float] | None:
    """How well the cleaned embeddings tell the channel of speakers not fitted on; None where there is one channel."""
    clean = space.cleaned(group.features, group.text)
    channel = np.array([x["channel"] for x in group.items])
    held_out = np.array([x["split"] != "train" for x in group.items])
    if len(set(channel)) < 2 or not held_out.any():
        return None
    return quality.probe(clean[group.fitted], channel[group.fitted], clean[held_out], channel[held_out])


def write(
    folder: Path,
    group: Grouping,
    labels: np.ndarray,
    taught: np.ndarray,
    xy: np.ndarray,
    figures: dict[str, Any],
) -> None:
    """Writes the files of the phase and prints the figures."""
    items, fitted = group.items, group.fitted
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "assignments.jsonl").open("w") as f:
        for item, label, row, fit in zip(items, labels, taught, fitted, strict=True):
            line = {"id": item["id"], "cluster": int(label), "membership": row.round(6).tolist(), "fitted": bool(fit)}
            f.write(json.dumps(line) + "\n")
    inside = [x for x, fit in zip(items, fitted, strict=True) if fit]
    rest = np.array([x["split"] != "train" for x in items])
    held_out = [x for x, chosen in zip(items, rest, strict=True) if chosen]
    found = labels[fitted]
    summary = {
        "found": int(found.max() + 1),
        "noise_share": float((found < 0).mean()),
        "sizes": np.bincount(found[found >= 0]).tolist(),
        "utterances": len(inside),
        "ami": quality.agreement(found, inside),
        "ami_held_out": quality.agreement(labels[rest], held_out),
        "ami_held_out_speakers": quality.agreement_of_speakers(labels[rest], held_out),
        **figures,
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
    titles = {"ami": "AMI", "ami_held_out": "AMI on held-out speakers", "ami_held_out_speakers": "each counted once"}
    for key, title in titles.items():
        print(f"  {title}: " + ", ".join(f"{k} {v:.2f}" for k, v in summary[key].items()))
    print(f"{summary['found']} clusters, {summary['noise_share']:.0%} noise")
