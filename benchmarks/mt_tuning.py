"""What fine-tuning the local translator gives: BLEU before and after, on sentences that were not trained on.

  python -m benchmarks.mt_tuning --workdir=checkpoints/quickstart            the prepared corpus's own pairs
  python -m benchmarks.mt_tuning --ding=/usr/share/trans/de-en --test=FILE.en,FILE.de
                 pairs of the Ding dictionary (Debian's trans-de-en), tested on sentences of 4 to 14 words

Intervals are of the difference, bootstrapped over sentences; a seed is a whole training. With --keep=DIR trainings and
translations stay there, and a run that was killed goes on where it was.
"""

import argparse
import json
from pathlib import Path
import re
import tempfile
from typing import Any

import numpy as np

from configs import quickstart
from jaxmoe import mt
from jaxmoe.data import pairs as pair_data
from jaxmoe.data.pairs import Pair
from jaxmoe.eval import bleu
from jaxmoe.mt.local import ADAPTERS
from jaxmoe.phases import mt as phase

WORDS = range(4, 15)
_ASIDE = re.compile(r"\{[^}]*\}|\[[^\]]*\]|/[^/]*/|\([^)]*\)")


def ding(path: Path) -> list[Pair]:
    """The whole sentences of a dictionary whose lines read `German | German :: English | English`."""
    found: dict[str, str] = {}
    for line in path.read_text("utf-8").splitlines():
        german, _, english = line.partition("::")
        sides = [[" ".join(_ASIDE.sub("", x.split(";")[0]).split()) for x in s.split(" | ")] for s in (english, german)]
        for pair in zip(*sides, strict=True) if len(sides[0]) == len(sides[1]) else ():
            if all(s and s[0].isupper() and s[-1] in ".?!" and len(s.split()) in WORDS for s in pair):
                found.setdefault(*pair)
    return sorted(found.items())


def data(args: argparse.Namespace) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Pairs to train on, to validate on, to test on; no English sentence is in two of them."""
    if args.ding:
        english, german = (Path(p).read_text("utf-8").splitlines() for p in args.test.split(","))
        test = [p for p in zip(english, german, strict=True) if len(p[0].split()) in WORDS][: args.sentences]
        train, validation = pair_data.divide(pair_data.without(ding(args.ding), test))
        order = np.random.default_rng(0).permutation(len(validation))[:200]
        return train, [validation[i] for i in order], test
    corpus = [pair_data.corpus_pairs(args.workdir, s) for s in ("train", "validation", "evaluation")]
    test = pair_data.without(corpus[2], corpus[0])[: args.sentences]
    train, validation = pair_data.divide(corpus[0])
    return train, [*validation, *pair_data.without(corpus[1], [*corpus[0], *test])], test


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--workdir", type=Path, help="a run whose corpus is prepared")
    parser.add_argument("--ding", type=Path)
    parser.add_argument("--test", default="")
    parser.add_argument("--sentences", type=int, default=10_000, help="at most so many to test on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="a folder for trainings and translations")
    parser.add_argument("--set", action="append", default=[], help="a field of config.mt_tuning, e.g. steps=40")
    args = parser.parse_args()
    train, validation, test = data(args)
    print(f"{len(train)} pairs to train on, {len(validation)} to validate on, {len(test)} to test on", flush=True)
    config = quickstart.get_config().unlock()
    config.mt_tuning.update(dict(steps=60, log_every=10, save_every=20) | dict(map(_field, args.set)))
    with tempfile.TemporaryDirectory() as temporary:
        run(config, args.model, args.seeds, args.keep or Path(temporary), (train, validation, test))


def run(config: Any, model: str, seeds: int, folder: Path, data: tuple[list[Pair], list[Pair], list[Pair]]) -> None:
    """Prints BLEU before tuning, then after each seed's, whose training is in folder/seed<N>."""
    train, validation, test = data
    texts, references = [e for e, _ in test], [g for _, g in test]

    def statistics(adapters: Path | None = None) -> np.ndarray:
        translator = mt.make("local", model, adapters=adapters, cache_path=folder / "translations.sqlite")
        return bleu.bleu_statistics(translator.translate(texts), references)

    before = statistics()
    print(json.dumps({"untuned": round(float(bleu.bleu(before.sum(0))), 2)}), flush=True)
    rows = np.random.default_rng(0).integers(0, len(test), (1000, len(test)))
    for config.seed in range(seeds):
        trained = folder / f"seed{config.seed}"
        if not (trained / "done").exists():
            phase.tune(config, trained, model, train, validation)
            (trained / "done").touch()
        after = statistics(trained / ADAPTERS)
        draws = bleu.bleu(after[rows].sum(1)) - bleu.bleu(before[rows].sum(1))
        gain, interval = bleu.bleu(after.sum(0)) - bleu.bleu(before.sum(0)), np.percentile(draws, [2.5, 97.5])
        figures = {"tuned": bleu.bleu(after.sum(0)), "gain": gain, "low": interval[0], "high": interval[1]}
        print(json.dumps({"seed": config.seed, **{k: round(float(v), 2) for k, v in figures.items()}}), flush=True)


def _field(text: str) -> tuple[str, float | int]:
    name, _, value = text.partition("=")
    return name, float(value) if "." in value or "e" in value else int(value)


if __name__ == "__main__":
    main()
