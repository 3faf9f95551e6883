"""Corpora: each lists its recordings without reading them.

A corpus is a module here with

    recordings(path, seed, **options) -> Iterator[Recording | Refused]

`path` and `seed` come from config.data.path and config.seed, the options from the configuration's group of the corpus's
name. What the corpus itself finds wrong (a folder without metadata, a file listed twice) it yields as Refused. A module
whose recordings are not simply sound files also has `read(recording) -> float32 [n]`, mono at 16 kHz. `prepare` does
the rest: it reads, checks, splits and stores. docs/corpora.md writes a new corpus in thirty lines.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
import io
from pathlib import Path

import numpy as np

SPLITS = ("train", "validation", "evaluation")

# One entry a corpus: the module of that name in this folder.
CORPORA = ("demo", "manifest", "sap", "torgo", "uaspeech", "huggingface")

AUDIO = frozenset(".wav .flac .mp3 .ogg .oga .opus .m4a .mp4 .aac .wma .aif .aiff .amr .webm".split())
CONTROL = "control"  # the etiology of speakers without a disorder


@dataclass(frozen=True)
class Recording:
    """One utterance of one speaker, its sound not yet read.

    Attributes:
      id: unique in the corpus.
      speaker: who says it; "" where unknown, and the recording then counts as a speaker of its own.
      text: transcript in English, without markup.
      path: the file that holds it.
      source: where it comes from, for people: a file, a corpus, or that it is simulated.
      how: what the corpus's `read` needs besides the path.
      transcript: the text as annotated, with its markup; "" if that is the text.
      translation: the transcript in German, "" if there is none.
      translation_origin: who translated: "corpus", or the name of an MT system.
      etiology, severity, voice, channel, sex: what is known of speaker and recording.
      language: mother tongue, as far as known.
      prompt: names the text read, equal for all who read it; "" stands for the text itself.
      category: kind of prompt.
      ratings: listeners' ratings of it, as JSON.
      split: one of SPLITS where the corpus decides, "" to have it drawn by speaker.
      simulated: whether the disorder or the voice is synthetic.
    """

    id: str
    speaker: str
    text: str
    path: str
    source: str = ""
    how: str = ""
    transcript: str = ""
    translation: str = ""
    translation_origin: str = ""
    etiology: str = "unknown"
    severity: str = "unknown"
    prompt: str = ""
    category: str = ""
    voice: str = ""
    channel: str = ""
    sex: str = ""
    language: str = ""
    ratings: str = ""
    split: str = ""
    simulated: bool = False


@dataclass(frozen=True)
class Refused:
    """What a corpus or a check sets aside: the reason to count by, and the particulars."""

    id: str
    reason: str
    detail: str
    source: str = ""
    speaker: str = ""
    etiology: str = "unknown"


def list_corpus(name: str, path: str, seed: int, **options: object) -> Iterator[Recording | Refused]:
    """What the corpus `name` holds.

    Raises:
      ValueError: no such corpus, or nothing of its layout at `path`.
    """
    if name not in CORPORA:
        raise ValueError(f"config.data.corpus={name!r}, expected one of {', '.join(CORPORA)}.")
    yield from import_module(f"jaxmoe.data.corpora.{name}").recordings(path=path, seed=seed, **options)


def read(name: str, recording: Recording) -> np.ndarray:
    """The samples of a recording of the corpus `name`, float32 [n] mono at 16 kHz."""
    module = import_module(f"jaxmoe.data.corpora.{name}")
    return module.read(recording) if hasattr(module, "read") else read_file(recording.path)


def read_file(source: str | Path | io.BytesIO) -> np.ndarray:
    """Samples of a sound file, or of its bytes, float32 [n] mono at 16 kHz."""
    from jaxmoe.data.sound import load_audio  # imports soxr and FFmpeg, which listing a corpus does not need

    return load_audio(source)


_TEXT = (str, int, float)  # a union in its place would be made anew for every value of a corpus


def normalised(text: str) -> str:
    """What decides whether two sentences are the same: letters and digits."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())


def words(value: object) -> str:
    """A value of a table or a JSON file as text on one line; "" for what is no text or number."""
    if not isinstance(value, _TEXT) or isinstance(value, bool):
        return ""
    text = str(value)
    if not text.isascii():  # JSON can hold half a surrogate pair, a file cannot
        text = text.encode("utf-8", "replace").decode()
    return " ".join(text.replace("\0", " ").split())
