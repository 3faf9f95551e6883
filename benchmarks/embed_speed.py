"""Embeddings beside transformers: audio -> mean of the encoder's output, the same weights, both cores, in alternation.

COMMAND: python -m benchmarks.embed_speed [--workdir=RUN | --csv=CLIPS.csv] [--model=tiny.en] [--clips=96]
transformers computes 30 s for every recording, as Whisper's feature extractor gives them; we compute the recording and
a margin, in batches of like length, and with --context=full the 30 s too. Printed beside the times: how far our
embeddings are from theirs (1 - cosine), and two recordings from each other. Without RUN or CLIPS.csv, recordings of the
demo corpus before any disorder is simulated.
"""

import argparse
from pathlib import Path
import tempfile

import numpy as np

from benchmarks import race
from benchmarks.clips import demo_clips, evenly, read_clips, stored_clips
from jaxmoe.compilation import enable_cache
from jaxmoe.data.audio import N_SAMPLES, SAMPLE_RATE, positions
from jaxmoe.memory import reuse_memory
from jaxmoe.model.load import load_whisper
from jaxmoe.model.load.hf import save_hf
from jaxmoe.phases.embed import embed_rows
from jaxmoe.system import load_system

BATCH = 8


class Theirs:
    """transformers' feature extractor and encoder."""

    def __init__(self, name: str) -> None:
        import transformers

        transformers.logging.set_verbosity_error()
        with tempfile.TemporaryDirectory() as folder:
            save_hf(folder, *load_whisper(name))
            self.encoder = transformers.WhisperModel.from_pretrained(folder).eval().encoder
        self.extract = transformers.WhisperFeatureExtractor(self.encoder.config.num_mel_bins)

    def __call__(self, sounds: list[np.ndarray]) -> np.ndarray:
        import torch

        means = []
        for start in range(0, len(sounds), BATCH):
            some = sounds[start : start + BATCH]
            features = self.extract(some, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
            with torch.no_grad():
                latents = self.encoder(features).last_hidden_state
            means += [h[: positions(len(x))].mean(0).numpy() for x, h in zip(some, latents, strict=True)]
        return np.stack(means)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Median of 1 - cosine of rows [U, D]."""
    return float(np.median(1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workdir", type=Path, help="a run with --phase=prepare done")
    p.add_argument("--csv", type=Path)
    p.add_argument("--model", default="tiny.en")
    p.add_argument("--clips", type=int, default=96)
    p.add_argument("--context", choices=("trimmed", "full"), default="trimmed")
    p.add_argument("--rounds", type=int, default=5)
    args = p.parse_args()
    enable_cache()
    reuse_memory()
    found = stored_clips(args.workdir) if args.workdir else read_clips(args.csv) if args.csv else demo_clips()
    sounds = [c.samples for c in evenly([c for c in found if len(c.samples) <= N_SAMPLES], args.clips)]
    system, peer = load_system(args.model), Theirs(args.model)
    made: dict[str, np.ndarray] = {}

    def ours() -> None:
        settings = dict(batch_size=BATCH, context=args.context, margin_s=1.0)
        _, depths = embed_rows(system.model, system.params, sounds, **settings)
        made["ours"] = depths[:, -1, 0]

    times = race.alternate({"ours": ours, "theirs": lambda: made.update(theirs=peer(sounds))}, args.rounds)
    apart, between = distance(made["ours"], made["theirs"]), distance(made["theirs"][1:], made["theirs"][:-1])
    work = (
        f"{sum(map(len, sounds)) / SAMPLE_RATE:.0f} s of speech in {len(sounds)} recordings; "
        f"embeddings {apart:.2g} apart, two recordings {between:.2g}"
    )
    print(race.HEAD)
    target = 3.0 if args.context == "trimmed" else None
    question = f"{args.model} embeddings, {args.context} context"
    print(race.Result(question, "transformers", times["ours"], times["theirs"], target, work).row())


if __name__ == "__main__":
    main()
