"""Transcription beside faster-whisper: the same weights, the same recordings, both cores, in alternation.

COMMAND: python -m benchmarks.transcribe_speed [--question=greedy|beam|long] [--csv=CLIPS.csv] [--model=tiny.en]
greedy, beam: short clips, temperature 0, no fallback, timestamps, no prompt from earlier text. faster-whisper takes one
clip after the other, as its interface does. Both hear 30 s; with --skip_padding ours hears the audio alone, and in full
what comes out doubtful. long: the clips joined to one recording and cut at pauses, against its batched pipeline, both
without timestamps, as is the pipeline's default; --timestamps asks ours for them. The WER of each is printed. CLIPS.csv
has path and transcript; without it, the demo corpus's recordings are taken.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import race
from benchmarks.clips import Clip, demo_clips, evenly, read_clips
from jaxmoe import weights
from jaxmoe.compilation import enable_cache
from jaxmoe.data.audio import SAMPLE_RATE
from jaxmoe.eval.wer import score
from jaxmoe.memory import reuse_memory
from jaxmoe.model.precision import NARROW
from jaxmoe.system import Recogniser, load_system
from jaxmoe.transcription import transcribe
from jaxmoe.windows import TranscribeOptions

GAP_S = 0.4  # between clips that are joined
TARGETS = {("greedy", "float32"): 2.0, ("greedy", "int8"): 1.3, ("beam", "float32"): 1.5, ("long", "float32"): 1.0}


def ours(system: Recogniser, sounds: list[np.ndarray], options: TranscribeOptions) -> list[str]:
    texts = [""] * len(sounds)
    for step in transcribe(system, [lambda x=x: x for x in sounds], options):
        if step.transcript:
            texts[step.index] = step.transcript.text
    return texts


def theirs(model: Any, sounds: list[np.ndarray], beam_size: int, **settings: Any) -> list[str]:
    """model: a WhisperModel or a BatchedInferencePipeline."""
    texts = []
    for sound in sounds:
        segments, _ = model.transcribe(
            sound, language="en", beam_size=beam_size, temperature=0.0, condition_on_previous_text=False, **settings
        )
        texts.append("".join(s.text for s in segments))
    return texts


def joined(clips: list[Clip], seconds: float) -> Clip:
    """One recording of the clips in random order, again and again until it is long enough."""
    rng, gap = np.random.default_rng(0), np.zeros(round(GAP_S * SAMPLE_RATE), np.float32)
    sounds, texts = [], []
    while sum(map(len, sounds)) < seconds * SAMPLE_RATE:
        for i in rng.permutation(len(clips)):
            sounds += [clips[i].samples, gap]
            texts.append(clips[i].transcript)
    return Clip(Path("joined"), " ".join(texts), np.concatenate(sounds))


def ask(question: str, system: Recogniser, clips: list[Clip], args: argparse.Namespace) -> list[race.Result]:
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    long, beam = question == "long", 5 if question == "beam" else 1
    options = TranscribeOptions(
        beam_size=beam,
        temperatures=(0.0,),
        batch_size=args.batch_size,
        cut_at_pauses=long,
        without_timestamps=long and not args.timestamps,
    )
    sounds, references = [c.samples for c in clips], [c.transcript for c in clips]
    texts: dict[str, list[str]] = {}

    def keep(name: str, program: Callable[[], list[str]]) -> Callable[[], None]:
        return lambda: texts.__setitem__(name, program())

    folder = str(weights.resolve(args.model))
    programs = {"ours": keep("ours", lambda: ours(system, sounds, options))}
    for kind in ("float32", "int8"):
        model: Any = WhisperModel(folder, device="cpu", compute_type=kind, cpu_threads=2)
        settings = dict(batch_size=args.batch_size) if long else {}
        model = BatchedInferencePipeline(model) if long else model
        programs[kind] = keep(kind, lambda m=model, s=settings: theirs(m, sounds, beam, **s))
    times = race.alternate(programs, args.rounds)
    wer = {name: f"{score(references, t).wer:.2f}" for name, t in texts.items()}
    what = f"{sum(map(len, sounds)) / SAMPLE_RATE:.0f} s of speech in {len(sounds)} recordings"
    return [
        race.Result(
            f"{args.model} {question}", f"faster-whisper {kind}", times["ours"], times[kind],
            TARGETS.get((question, kind)), f"{what}; WER {wer['ours']}, peer {wer[kind]}",
        )
        for kind in ("float32", "int8")
    ]  # fmt: skip


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--question", choices=("greedy", "beam", "long"), action="append")
    p.add_argument("--csv", type=Path)
    p.add_argument("--model", default="tiny.en")
    p.add_argument("--clips", type=int, default=60)
    p.add_argument("--minutes", type=float, default=20.0)
    p.add_argument("--batch_size", type=int, default=16, help="(default: %(default)s)")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--timestamps", action="store_true", help="of the long recording, ours")
    p.add_argument("--skip_padding", action="store_true", help="as of `transcribe`")
    p.add_argument("--bfloat16", action="store_true", help="as of `transcribe`")
    args = p.parse_args()
    if args.bfloat16:
        jax.config.update("jax_default_matmul_precision", NARROW)
    enable_cache()
    reuse_memory()
    system = load_system(args.model, exact=not args.skip_padding)
    clips = evenly(read_clips(args.csv) if args.csv else demo_clips(), args.clips)
    print(race.HEAD)
    for question in args.question or ("greedy", "beam", "long"):
        chosen = [joined(clips, 60 * args.minutes)] if question == "long" else clips
        for result in ask(question, system, chosen, args):
            print(result.row(), flush=True)


if __name__ == "__main__":
    main()
