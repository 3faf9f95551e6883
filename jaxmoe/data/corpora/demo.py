"""The demo corpus: synthetic voices read everyday sentences, disorders and channels are simulated on the fly.

IT IS A SIMULATION, from the voices (Kokoro-82M) to the disorders (jaxmoe/data/simulate.py) and the microphones
(jaxmoe/data/channels.py): it shows that the pipeline works, and no figure from it says anything about real patients.

A speaker is a voice under one condition (etiology and severity), heard through one channel at a level of its own.
Splits are disjoint by voice: 22 voices train, 3 validate, 3 evaluate. The held-out voices take every condition in turn,
so that both held-out splits hold all of them.
"""

from collections.abc import Iterator
import csv
from dataclasses import dataclass
import json
from pathlib import Path
import zlib

import numpy as np

from jaxmoe.data import channels, simulate
from jaxmoe.data.corpora import Recording, read_file

DEMO = Path(__file__).parent.parent / "demo"
LEVEL_DBFS = (-32.0, -18.0)  # a quiet talker far from the microphone to one close to it
# How many women's and men's voices each held-out split takes.
HELD_OUT = {"validation": {"female": 1, "male": 2}, "evaluation": {"female": 2, "male": 1}}


@dataclass(frozen=True)
class Speaker:
    """A voice under a condition: who says, how, through what, and how loud."""

    id: str
    voice: str
    split: str
    etiology: str
    severity: str
    channel: int
    level_dbfs: float


def recordings(
    path: str = "",
    seed: int = 0,
    *,
    train_speakers_per_voice: int,
    held_out_speakers_per_voice: int,
    train_utterances: int,
    validation_utterances: int,
    evaluation_utterances: int,
) -> Iterator[Recording]:
    """The demo corpus.

    Args:
      path: another folder laid out as jaxmoe/data/demo; "" for that one.
      seed: draws the splits, the speakers and all that is random in the simulation.
      train_speakers_per_voice, held_out_speakers_per_voice: conditions each voice takes, at most 11.
      train_utterances, validation_utterances, evaluation_utterances: recordings of each speaker of that split, at most
        as many as its voice has (about 21).

    Raises:
      ValueError: a count out of range, or clips that sentences.tsv does not list.
    """
    folder = Path(path) if path else DEMO
    with open(folder / "sentences.tsv", encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        sentences = {row["id"]: row for row in rows}
    clips = _clips(folder, sentences)
    utterances = {
        "train": train_utterances,
        "validation": validation_utterances,
        "evaluation": evaluation_utterances,
    }
    most = min(len(c) for c in clips.values())
    for split, n in utterances.items():
        if not 1 <= n <= most:
            raise ValueError(f"config.demo.{split}_utterances={n}, expected 1 to {most} (clips of a voice).")
    turn = dict.fromkeys(clips, 0)  # how many clips of each voice are given out
    for speaker in make_speakers(sorted(clips), seed, train_speakers_per_voice, held_out_speakers_per_voice):
        order = _rng(seed, speaker.voice).permutation(len(clips[speaker.voice]))
        for _ in range(utterances[speaker.split]):
            # Speakers of one voice go on where the one before stopped: all clips are used before one is used twice.
            clip = clips[speaker.voice][order[turn[speaker.voice] % len(order)]]
            turn[speaker.voice] += 1
            yield _recording(speaker, clip, sentences[clip.stem], seed)


def make_speakers(
    voices: list[str], seed: int, train_speakers_per_voice: int, held_out_speakers_per_voice: int
) -> list[Speaker]:
    """All speakers: conditions in equal numbers, channels dealt out evenly within each condition."""
    for name, n in (
        ("train_speakers_per_voice", train_speakers_per_voice),
        ("held_out_speakers_per_voice", held_out_speakers_per_voice),
    ):
        if not 1 <= n <= len(simulate.CONDITIONS):
            raise ValueError(f"config.demo.{name}={n}, expected 1 to {len(simulate.CONDITIONS)} (conditions).")
    speakers = []
    for split, members in split_voices(voices, seed).items():
        per_voice = train_speakers_per_voice if split == "train" else held_out_speakers_per_voice
        rng = _rng(seed, split)
        order = rng.permutation(len(simulate.CONDITIONS))
        # A fixed round of all conditions: no voice takes one twice, and each is taken equally often.
        conditions = [order[n % len(order)] for n in range(len(members) * per_voice)]
        channel_of = _deal_channels(conditions, rng)
        for n, condition in enumerate(conditions):
            voice = members[n // per_voice]
            etiology, severity = simulate.CONDITIONS[condition]
            name = f"{voice}-{etiology}-{severity}".lower().replace(" ", "-").replace("'", "")
            level = float(_rng(seed, name).uniform(*LEVEL_DBFS))
            speakers.append(Speaker(name, voice, split, etiology, severity, channel_of[n], level))
    return speakers


def split_voices(voices: list[str], seed: int) -> dict[str, list[str]]:
    """Voices of each split; women and men in the numbers of HELD_OUT, the others train."""
    rng = _rng(seed, "voices")
    left = {s: [v for v in voices if sex(v) == s] for s in ("female", "male")}
    for members in left.values():
        rng.shuffle(members)
    splits: dict[str, list[str]] = {"train": []}
    for split, numbers in HELD_OUT.items():
        splits[split] = [left[s].pop() for s, n in numbers.items() for _ in range(n)]
    splits["train"] = sorted(left["female"] + left["male"])
    rng.shuffle(splits["train"])
    return splits


def sex(voice: str) -> str:
    """Kokoro names a voice by accent and sex: af_heart is an American woman, bm_lewis a British man."""
    return {"f": "female", "m": "male"}[voice[1]]


def read(recording: Recording) -> np.ndarray:
    """The clip as the speaker says it and the channel hears it, float32 [n] at 16 kHz."""
    how = json.loads(recording.how)
    speech = simulate.simulate(
        read_file(recording.path), recording.etiology, recording.severity, how["seed"], recording.id
    )
    rng = _rng(how["seed"], f"{recording.id}/noise")
    return channels.make_channel(how["channel"], how["seed"]).record(speech, how["level_dbfs"], rng)


def _clips(folder: Path, sentences: dict[str, dict[str, str]]) -> dict[str, list[Path]]:
    clips: dict[str, list[Path]] = {}
    for clip in sorted((folder / "audio").glob("*/*.opus")):
        if clip.stem not in sentences:
            raise ValueError(
                f"{clip}: no sentence {clip.stem!r} in {folder / 'sentences.tsv'}; add it or remove the clip."
            )
        clips.setdefault(clip.parent.name, []).append(clip)
    if not clips:
        raise ValueError(f"{folder / 'audio'}: found no voice/sentence.opus; render.py makes them.")
    return clips


def _deal_channels(conditions: list[int], rng: np.random.Generator) -> list[int]:
    """A channel for each speaker, dealt like cards, condition after condition.

    Speakers of one condition get different channels as far as there are any, and all channels are used alike, so
    that the channel tells nothing about the condition.
    """
    order = sorted(range(len(conditions)), key=lambda n: (conditions[n], rng.random()))
    deck = rng.permutation(channels.NUM_CHANNELS)
    dealt = [0] * len(conditions)
    for position, n in enumerate(order):
        dealt[n] = int(deck[position % len(deck)])
    return dealt


def _recording(speaker: Speaker, clip: Path, sentence: dict[str, str], seed: int) -> Recording:
    return Recording(
        id=f"{speaker.id}/{clip.stem}",
        speaker=speaker.id,
        text=sentence["english"],
        path=str(clip),
        source=f"simulated: synthetic voice {speaker.voice} (Kokoro-82M), simulated disorder and channel",
        how=json.dumps({"channel": speaker.channel, "level_dbfs": speaker.level_dbfs, "seed": seed}),
        translation=sentence["german"],
        translation_origin="corpus",
        etiology=speaker.etiology,
        severity=speaker.severity,
        prompt=clip.stem,
        category=sentence["category"],
        voice=speaker.voice,
        channel=f"channel-{speaker.channel}",
        sex=sex(speaker.voice),
        language={"a": "en-US", "b": "en-GB"}[speaker.voice[0]],
        split=speaker.split,
        simulated=True,
    )


def _rng(seed: int, key: str) -> np.random.Generator:
    """Random numbers of one name: they depend on nothing drawn before them."""
    return np.random.default_rng([seed, zlib.crc32(key.encode())])
