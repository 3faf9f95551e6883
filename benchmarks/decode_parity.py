"""Our search beside transformers' and faster-whisper's: the same weights, the same clips.

COMMAND: python -m benchmarks.decode_parity [--csv=CLIPS.csv | --workdir=RUN] [--model=tiny.en] [--only=PART]
             [--skip=greedy|beam]
The CSV has columns path (relative to it) and transcript; of a run, the recordings that prepare stored are taken.
Greedy: how many clips give transformers' tokens exactly
(no timestamps, its own suppress lists). Beam 5: WER of both; faster-whisper in float32, temperature 0, no fallback, no
prompt from earlier text; speeds in clips/s, encoder included, ours after compilation.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
import tempfile
import time
from typing import Any

import jax
import numpy as np

from benchmarks.clips import Clip, read_clips, stored_clips
from jaxmoe import weights
from jaxmoe.compilation import enable_cache
from jaxmoe.data.audio import N_SAMPLES, log_mel_spectrogram, pad_or_trim
from jaxmoe.data.text import EnglishNormalizer
from jaxmoe.model.decode import DecodingOptions, decode
from jaxmoe.model.load import load_whisper
from jaxmoe.model.load.hf import save_hf
from jaxmoe.system import Recogniser, load_system
from jaxmoe.transcription import transcribe
from jaxmoe.windows import TranscribeOptions


def windows(system: Recogniser, clips: list[Clip], size: int) -> list[tuple[jax.Array, np.ndarray]]:
    """Log-mel [B, M, 3000] and lengths in batches; the last is filled up with its first clip."""
    out = []
    for at in range(0, len(clips), size):
        batch = clips[at : at + size]
        batch = batch + batch[:1] * (size - len(batch))
        # As transformers' feature extractor pads: sound, not features.
        mel = log_mel_spectrogram(np.stack([pad_or_trim(c.samples) for c in batch]), system.model.dims.n_mels)
        out.append((mel, np.array([len(c.samples) for c in batch])))
    return out


def our_greedy(system: Recogniser, batches: list[tuple[jax.Array, np.ndarray]]) -> list[list[int]]:
    tokens: list[list[int]] = []
    for mel, lengths in batches:
        latents, _ = system.encode(mel, lengths)
        prompt = system.tokenizer.sot_sequence()
        tokens += decode(
            system.model, system.params, latents, prompt=prompt, tokenizer=system.tokenizer, options=DecodingOptions()
        ).tokens
    return tokens


def their_greedy(name: str, system: Recogniser, batches: list[tuple[jax.Array, np.ndarray]]) -> list[list[int]]:
    """transformers' generate with these weights, written out and read back."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        save_hf(folder, *load_whisper(name))
        model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    prompt, eot = list(system.tokenizer.sot_sequence()), system.tokenizer.eot
    tokens: list[list[int]] = []
    for mel, lengths in batches:
        start = torch.tensor([prompt] * len(lengths))
        with torch.no_grad():
            out = model.generate(torch.tensor(np.array(mel)), decoder_input_ids=start, max_new_tokens=224)
        for ids in out.tolist():
            ids = ids[len(prompt) :] if ids[: len(prompt)] == prompt else ids
            tokens.append(ids[: ids.index(eot)] if eot in ids else ids)
    return tokens


def our_beam(system: Recogniser, clips: list[Clip], batch_size: int) -> list[str]:
    options = TranscribeOptions(temperatures=(0.0,), batch_size=batch_size)
    texts = [""] * len(clips)
    for step in transcribe(system, [lambda c=c: c.samples for c in clips], options):
        if step.transcript:
            texts[step.index] = step.transcript.text
    return texts


def their_beam(model: Any, clips: list[Clip]) -> list[str]:
    def text(clip: Clip) -> str:
        segments, _ = model.transcribe(
            clip.samples, language="en", beam_size=5, temperature=0.0, condition_on_previous_text=False,
            no_speech_threshold=None,
        )  # fmt: skip
        return "".join(s.text for s in segments)

    return [text(clip) for clip in clips]


def wer(clips: list[Clip], texts: list[str]) -> float:
    """Micro-averaged word error rate in per cent after Whisper's normalisation."""
    import jiwer

    normalize = EnglishNormalizer()
    return 100 * jiwer.wer([normalize(c.transcript) for c in clips], [normalize(t) for t in texts])


def timed(fn: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return fn(), time.perf_counter() - start


def compare_greedy(name: str, system: Recogniser, clips: list[Clip], batch_size: int) -> None:
    clips = [c for c in clips if len(c.samples) <= N_SAMPLES]
    batches = windows(system, clips, batch_size)
    our_greedy(system, batches[:1])  # compiles
    ours, our_s = timed(lambda: our_greedy(system, batches)[: len(clips)])
    theirs, their_s = timed(lambda: their_greedy(name, system, batches)[: len(clips)])
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    print(f"{name} greedy: {same} of {len(clips)} clips give transformers' tokens exactly")
    speeds = f"{len(clips) / our_s:.2f} clips/s, transformers {len(clips) / their_s:.2f}"
    print(f"{name} greedy: {speeds} (float32, batch {batch_size})")
    for clip, a, b in zip(clips, ours, theirs, strict=True):
        if a != b:
            print(f"  {clip.path.name}: {system.tokenizer.decode(a)!r}, transformers {system.tokenizer.decode(b)!r}")


def compare_beam(name: str, system: Recogniser, clips: list[Clip], batch_size: int) -> None:
    folder = weights.resolve(name)
    if not (folder / "model.bin").is_file():
        print(f"{name} beam: not run: {folder} is no CTranslate2 folder, which faster-whisper needs")
        return
    from faster_whisper import WhisperModel

    model = WhisperModel(str(folder), device="cpu", compute_type="float32")
    our_beam(system, clips, batch_size)  # compiles all of its programs
    ours, our_s = timed(lambda: our_beam(system, clips, batch_size))
    theirs, their_s = timed(lambda: their_beam(model, clips))
    same = sum(a.strip() == b.strip() for a, b in zip(ours, theirs, strict=True))
    errors = f"WER {wer(clips, ours):.2f}, faster-whisper {wer(clips, theirs):.2f}"
    speeds = f"{len(clips) / our_s:.2f} clips/s, faster-whisper {len(clips) / their_s:.2f}"
    print(f"{name} beam 5: {errors}; the same text in {same} of {len(clips)}")
    print(f"{name} beam 5: {speeds}, ratio {their_s / our_s:.2f}")
    for clip, a, b in zip(clips, ours, theirs, strict=True):
        if a.strip() != b.strip():
            print(f"  {clip.path.name} {clip.transcript!r}\n    ours   {a!r}\n    theirs {b!r}")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    clips = Path(__file__).parents[1] / "tests" / "data" / "clips.csv"
    p.add_argument("--csv", type=Path, default=clips)
    p.add_argument("--workdir", type=Path, help="a run with --phase=prepare done")
    p.add_argument("--model", default="tiny.en")
    p.add_argument("--only", default="", help="clips whose path contains this")
    p.add_argument("--batch_size", type=int, default=8)
    p.add_argument("--skip", choices=("greedy", "beam"))
    args = p.parse_args()
    enable_cache()
    system = load_system(args.model)
    clips = stored_clips(args.workdir, args.only) if args.workdir else read_clips(args.csv, args.only)
    if args.skip != "greedy":
        compare_greedy(args.model, system, clips, args.batch_size)
    if args.skip != "beam":
        compare_beam(args.model, system, clips, args.batch_size)


if __name__ == "__main__":
    main()
