"""Corpora: each is a function that lists its recordings without reading them.

A corpus takes `path` and `seed` (from config.data and config) and the fields of the configuration's group of its own
name as keyword arguments, and yields a Recording for each utterance. `prepare` reads, checks and stores them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np

SPLITS = ("train", "validation", "evaluation")


@dataclass(frozen=True)
class Recording:
    """One utterance of one speaker, its sound not yet read.

    Attributes:
      id: unique in the corpus.
      speaker: who says it; "" where unknown, and the recording then counts as a speaker of its own.
      text: transcript in English.
      read: gives the samples, float32 [n] mono at 16 kHz; can be pickled, since `prepare` reads in other processes.
      source: where it comes from, for people: a file, a corpus, or that it is simulated.
      path: the file `read` reads, if it is one; its header is looked at before it is decoded.
      translation: the transcript in German, "" if there is none.
      translation_origin: who translated: "corpus", or the name of an MT system.
      etiology, severity, voice, channel, sex, language: what is known of speaker and recording.
      prompt: names the text read, equal for all who read it; "" stands for the text itself.
      split: one of SPLITS where the corpus decides, "" to have it drawn by speaker.
      simulated: whether the disorder or the voice is synthetic.
    """

    id: str
    speaker: str
    text: str
    read: Callable[[], np.ndarray]
    source: str
    path: str = ""
    translation: str = ""
    translation_origin: str = ""
    etiology: str = "unknown"
    severity: str = "unknown"
    prompt: str = ""
    voice: str = ""
    channel: str = ""
    sex: str = ""
    language: str = ""
    split: str = ""
    simulated: bool = False


Corpus = Callable[..., Iterable[Recording]]


def read_file(path: str | Path) -> np.ndarray:
    """Samples of a sound file, float32 [n] mono at 16 kHz."""
    from jaxmoe.data.audio import load_audio  # imports JAX, which listing a corpus does not need

    return load_audio(path)


def _load(module: str, **kwargs: object) -> Iterable[Recording]:
    return import_module(f"jaxmoe.data.corpora.{module}").recordings(**kwargs)


# One line a corpus: jaxmoe/data/corpora/NAME.py with `recordings(path, seed, ...)`.
CORPORA: dict[str, Corpus] = {name: partial(_load, name) for name in ("demo", "manifest")}
