"""What a run loses when it is exported: WER of its evaluation split, here and by the tools it is exported for.

COMMAND: python -m benchmarks.exports --workdir=RUN FOLDER...
FOLDERs are of jaxmoe.export --format=hf (heard by transformers) or ctranslate2 (by faster-whisper); whatever else these
load can stand there too. Both hear windows of 30 s, greedily; in "alone" one decoding counts, in "fallback" doubtful
texts are decoded again by sampling, at the temperatures of the run's evaluation. The run's own rows are those of its
evaluation, and "in 30 s" is its system hearing as the others do, its gate choosing for each utterance.
"""

import argparse
from collections.abc import Callable, Iterator
import json
from pathlib import Path

import numpy as np

from benchmarks.clips import Clip, stored_clips
from benchmarks.context import hear
from jaxmoe.compilation import enable_cache
from jaxmoe.data.audio import SAMPLE_RATE
from jaxmoe.eval import bootstrap, wer
from jaxmoe.system import Adapted, read_run

BATCH = 8  # of transformers
Texts = dict[str, str]  # id -> text
Clips = dict[str, Clip]


def evaluated(workdir: Path) -> Iterator[tuple[str, Texts]]:
    """The adapted systems that the run has evaluated, and what they heard."""
    for system in ("moe", "lora", "moe-encoder"):
        if (path := workdir / "eval" / system / "hypotheses.jsonl").exists():
            rows = map(json.loads, path.read_text("utf-8").splitlines())
            yield system, {row["id"]: row["hypothesis"] for row in rows}


def in_windows_of_30_s(workdir: Path, clips: Clips) -> Iterator[tuple[str, Texts]]:
    """The run's systems, without fallback, in their own context and in whole windows."""
    for system, _ in evaluated(workdir):
        run = read_run(workdir, system=system)
        made = {k: run.settings["embed"][k] for k in ("context", "margin_s")}
        model = Adapted(system, run.model, run.base, run.tokenizer, run.params, **made)
        for context, name in ((made["context"], "as trained"), ("full", "in 30 s")):
            sounds = [clip.samples for clip in clips.values()]
            texts, *_ = hear(model, sounds, context, made["margin_s"])
            yield f"{system}, {name}, alone", dict(zip(clips, texts, strict=True))


def by_transformers(folder: Path, clips: Clips, fallback: bool, timestamps: bool) -> Texts:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    processor = transformers.WhisperProcessor.from_pretrained(folder)
    more = dict(logprob_threshold=-1.0, compression_ratio_threshold=2.4, temperature=(0.0, 0.4, 0.8))
    more = more if fallback else {}
    torch.manual_seed(0)
    texts, sounds = [], [clip.samples for clip in clips.values()]
    for start in range(0, len(sounds), BATCH):
        heard = processor(sounds[start : start + BATCH], sampling_rate=SAMPLE_RATE, return_tensors="pt")
        with torch.no_grad():
            tokens = model.generate(heard.input_features, return_timestamps=timestamps, **more)
        texts += processor.batch_decode(tokens, skip_special_tokens=True)
    return dict(zip(clips, texts, strict=True))


def by_faster_whisper(folder: Path, clips: Clips, fallback: bool, timestamps: bool) -> Texts:
    import ctranslate2
    from faster_whisper import WhisperModel

    ctranslate2.set_random_seed(0)
    model = WhisperModel(str(folder), device="cpu")
    fields = dict(beam_size=1, temperature=(0.0, 0.4, 0.8) if fallback else 0.0, without_timestamps=not timestamps)
    fields |= dict(language="en", condition_on_previous_text=False, best_of=1)
    if not fallback:
        fields |= dict(no_speech_threshold=None)
    text = lambda clip: "".join(s.text for s in model.transcribe(clip.samples, **fields)[0])
    return {id_: text(clip) for id_, clip in clips.items()}


def heard_by(folder: Path, clips: Clips) -> Iterator[tuple[str, Texts]]:
    """A folder by its tool, in every way."""
    for fallback, name in ((False, "alone"), (True, "fallback")):
        by = by_faster_whisper if (folder / "model.bin").exists() else by_transformers
        for timestamps in (False, True):
            shown = f"{folder.name}, {by.__name__}{', timestamps' * timestamps}, {name}"
            yield shown, by(folder, clips, fallback, timestamps)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workdir", type=Path, required=True)
    p.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    p.add_argument("--skip_run", action="store_true", help="the run itself is not heard again")
    p.add_argument("--texts", type=Path, help="also written here, as JSON")
    args = p.parse_args()
    enable_cache()
    clips = {str(c.path).removeprefix("evaluation/"): c for c in stored_clips(args.workdir, "evaluation/")}
    ways: list[Callable[[], Iterator[tuple[str, Texts]]]] = [
        lambda: ((f"{system}, evaluation", texts) for system, texts in evaluated(args.workdir))
    ]
    ways += [] if args.skip_run else [lambda: in_windows_of_30_s(args.workdir, clips)]
    ways += [lambda f=f: heard_by(f, clips) for f in args.folders]
    kept: dict[str, Texts] = {}
    for way in ways:
        for name, texts in way():
            kept[name] = texts
            print(line(name, clips, texts, kept[next(iter(kept))]), flush=True)
    if args.texts:
        args.texts.write_text(json.dumps(kept, indent=1, ensure_ascii=False), "utf-8")


def line(name: str, clips: Clips, texts: Texts, first: Texts) -> str:
    """WER, and the difference to the first system with its interval over speakers."""
    index, count = bootstrap.speaker_index([id_.split("/")[0] for id_ in clips])

    def sums(said: Texts) -> np.ndarray:
        counts = wer.score([c.transcript for c in clips.values()], [said[i] for i in clips])
        return bootstrap.speaker_sums(np.stack([counts.errors, counts.words], 1), index, count)

    found, mine = bootstrap.paired(sums(texts), sums(first), wer.rate), sums(texts)
    low, high = found.ci95 or (float("nan"),) * 2
    return f"{wer.rate(mine.sum(0)):6.2f}  {found.difference:+6.2f} ({low:+.2f} to {high:+.2f})  {name}"


if __name__ == "__main__":
    main()
