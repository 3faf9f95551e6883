"""What tells silence from speech for an adapted decoder: <|nospeech|> without and with adapters, and other figures.

COMMAND: python -m benchmarks.silence --checkpoint=checkpoints/quickstart [--recordings=people.csv --columns=...]

Sets: the ten quiet rooms of the phase `stress`; noise alone, white, pink and brown, 80 to 20 dB below full scale, 2 to
10 s; the evaluation split; 21 of its utterances at 0 dB under three noises; recordings of your own. `written` counts
clips on which text is written without the rule, `withheld` those whose text the rule keeps back (transcription.py).
"""

import argparse
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from configs import quickstart
from jaxmoe.compilation import enable_cache
from jaxmoe.data import channels, noise
from jaxmoe.data.audio import SAMPLE_RATE, pad_or_trim
from jaxmoe.eval.run import split_clips
from jaxmoe.phases.stress import noisy_clips, silent_clip, table_clips
from jaxmoe.system import Adapted, load_system
from jaxmoe.windows import TranscribeOptions, decode_latents

BATCH = 8
LEVELS_DBFS, TILTS, SECONDS = (-80, -70, -60, -50, -40, -30, -20), (0.0, 1.0, 2.0), (2, 5, 10)


def sounds(workdir: Path, recordings: str, columns: str) -> list[tuple[str, np.ndarray]]:
    """(set, samples) of all clips, shortest first, so that few shapes compile."""
    out = [("quiet rooms", silent_clip(number, seed=0)) for number in range(10)]
    rng = np.random.default_rng(7)
    for tilt in TILTS:
        for level in LEVELS_DBFS:
            for seconds in SECONDS:
                hiss = channels.coloured_noise(seconds * SAMPLE_RATE, tilt, rng) * 10 ** (level / 20)
                out.append(("noise alone", np.clip(hiss, -1, 1).astype(np.float32)))
    out += [("evaluation split", clip.read()) for clip in split_clips(workdir, "evaluation")]
    items, noisy = noisy_clips(workdir, 21, ("white", "babble", "reverberation"), (0.0,), seed=0)
    out += [("at 0 dB", c.read()) for x, c in zip(items, noisy, strict=True) if x["channel"].endswith(" 0 dB")]
    if recordings:
        own = table_clips(recordings, columns, quickstart.get_config().quality)[1]
        out += [("recordings", clip.read()) for clip in own if clip.duration_s <= 30]
    return sorted(out, key=lambda x: len(x[1]))


def measure(system: Adapted, samples: list[np.ndarray]) -> list[dict[str, float]]:
    """Figures of up to BATCH clips of at most 30 s."""
    filled = samples + samples[:1] * (BATCH - len(samples))
    lengths = np.array([len(x) for x in filled])
    audio = np.stack([pad_or_trim(x, system.window(int(lengths.max()))) for x in filled])
    latents, embedding = system.encode(system.log_mel(audio, lengths), lengths)
    mask = system.cross_mask(lengths, latents.shape[1])
    columns, scales = system.adapt(embedding)
    start = jnp.full((BATCH, 1), system.tokenizer.sot)
    found = {}
    for name, variables, scaled in (("bare", {}, None), ("adapted", {"lora": columns}, scales)):
        variables = {"params": system.params, **variables}
        logits = system.model.apply(variables, latents, start, scaled, mask, method="logits")
        found[name] = np.asarray(jax.nn.softmax(logits[:, 0])[:, system.tokenizer.no_speech])
    options = TranscribeOptions(beam_size=1, best_of=1, temperatures=(0.0,))
    rows = decode_latents(system, latents, mask, embedding, options)
    return [
        {"no speech, without adapters": found["bare"][i], "no speech, with adapters": found["adapted"][i]}
        | {"mean log-probability": rows[i]["avg_logprob"], "level, dBFS": noise.level_dbfs(samples[i])}
        | {"written": bool(rows[i]["hypothesis"] or rows[i].get("withheld")), "withheld": bool(rows[i].get("withheld"))}
        for i in range(len(samples))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--recordings", default="")
    parser.add_argument("--columns", default="")
    args = parser.parse_args()
    enable_cache()
    system = load_system("", args.checkpoint)
    assert isinstance(system, Adapted)
    clips = sounds(args.checkpoint, args.recordings, args.columns)
    rows = []
    for start in range(0, len(clips), BATCH):
        chosen = clips[start : start + BATCH]
        figures = measure(system, [samples for _, samples in chosen])
        rows += [{"set": name, **row} for (name, _), row in zip(chosen, figures, strict=True)]
    for name, number in Counter(row["set"] for row in rows).items():
        mine = [row for row in rows if row["set"] == name]
        written, withheld = (sum(row[key] for row in mine) for key in ("written", "withheld"))
        print(f"{name}: {number} clips, written {written}, withheld {withheld}")
        for key in ("no speech, without adapters", "no speech, with adapters", "mean log-probability", "level, dBFS"):
            values = np.array([row[key] for row in mine])
            print(f"  {key:28} {values.min():7.3f} .. {np.median(values):7.3f} .. {values.max():7.3f}")


if __name__ == "__main__":
    main()
