"""What the clusters of a run agree with, and whether loudness has a part in it.

COMMAND: python -m benchmarks.clusters WORKDIR [WORKDIR ...] [--equal_level] [--methods=hdbscan,kmeans,spectral]
Each WORKDIR is a run up to --phase=embed; its own configuration is used. Prints adjusted mutual information on the
recordings clustered, on those of held-out speakers, and on these speakers, each counted once. --equal_level embeds all
of them again at one level first.
"""

import argparse
import json
from pathlib import Path

import jax
from ml_collections import ConfigDict
import numpy as np

from jaxmoe.clustering import quality
from jaxmoe.compilation import enable_cache
from jaxmoe.data import prepared
from jaxmoe.data.audio import window
from jaxmoe.data.channels import active_rms
from jaxmoe.phases.cluster import Grouping, pooled
from jaxmoe.phases.embed import encode
from jaxmoe.train.setup import load_backbone

LEVEL = 10 ** (-25.0 / 20)  # of full scale


def at_equal_level(config: ConfigDict, workdir: Path, group: Grouping) -> np.ndarray:
    """Features [U, D] of the group's utterances, all at the same active level."""
    from tqdm import tqdm

    backbone, layer = load_backbone(config), config.cluster.layer
    features = np.array(group.features)
    rows = {}
    for split in ("train", "validation", "evaluation"):
        source = prepared.open_split(workdir, split)
        for i, item in enumerate(prepared.open_metadata(workdir, split)):
            rows[item["id"]] = (source, i)
    wanted = [i for i, x in enumerate(group.items) if group.fitted[i] or x["split"] != "train"]
    for i in tqdm(wanted, desc="equal level", unit="utt"):
        source, row = rows[group.items[i]["id"]]
        samples = source[row]["audio"].astype(np.float32) / 32768.0
        samples *= LEVEL / max(active_rms(samples), 1e-9)
        audio = np.zeros((1, window(len(samples), config.embed.context, config.embed.margin_s)), np.float32)
        audio[0, : len(samples)] = samples
        placed = jax.device_put((audio, np.array([len(samples)], np.int32)))
        depths = encode(backbone.model.whisper, backbone.base, *placed, frames=config.embed.frames)[1]
        features[i] = pooled(np.asarray(depths)[0, layer], config.cluster.pooling)
    return features


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("workdirs", nargs="+", type=Path)
    p.add_argument("--equal_level", action="store_true")
    p.add_argument("--methods", default="hdbscan")
    args = p.parse_args()
    enable_cache()
    names = ("etiology", "severity", "voice", "speaker", "channel", "sentence")
    print("| run | method | clusters | recordings | " + " | ".join(names) + " |\n" + "|---" * (4 + len(names)) + "|")
    for workdir in args.workdirs:
        config = ConfigDict(json.loads((workdir / "config.json").read_text())["config"])
        group = Grouping(config, workdir)
        if args.equal_level:
            group.features = at_equal_level(config, workdir, group)
        inside = np.flatnonzero(group.fitted)
        held_out = np.array([i for i, x in enumerate(group.items) if x["split"] != "train"])
        for method in args.methods.split(","):
            config.cluster.method = method
            space, clusters, _, unit = group.fit(inside, config.seed)
            placed = group.place(space, clusters, held_out)[0]
            known, unknown = ([group.items[i] for i in part] for part in (inside, held_out))
            rows = {
                "fitted": quality.agreement(clusters.labels[unit], known),
                "held out": quality.agreement(placed, unknown),
                "held out, speakers counted once": quality.agreement_of_speakers(placed, unknown),
            }
            for title, ami in rows.items():
                figures = " | ".join(f"{ami[n]:.2f}" if n in ami else "" for n in names)
                print(f"| {workdir.name} | {method} | {clusters.labels.max() + 1} | {title} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
