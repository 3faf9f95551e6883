"""The models in memory, and what is done with a recording. Used by the worker's thread alone, once loaded."""

import argparse
from collections.abc import Callable
import dataclasses
import functools
import io
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from jaxmoe import options, writers
from jaxmoe.data.audio import SAMPLE_RATE, WINDOWS_S
from jaxmoe.data.sound import load_audio
from jaxmoe.mt import Translator
from jaxmoe.mt.cache import Cache
from jaxmoe.mt.cached import CachedTranslator
from jaxmoe.segments import Transcript
from jaxmoe.serve.guard import place
from jaxmoe.serve.worker import Job, Steps
from jaxmoe.system import SPEECH, Recogniser, personal_folder
from jaxmoe.transcription import transcribe
from jaxmoe.weights import cache_folder
from jaxmoe.windows import TranscribeOptions

FALLBACK = 0.2  # any temperature above 0 is the same program
SENTENCES = ("Good morning.", "I would like to go to the shop with my sister in the afternoon, when it is not so warm.")


@dataclasses.dataclass(frozen=True)
class Task:
    """A recording and what is wanted of it.

    Args:
      options: fields of TranscribeOptions that are not the server's.
    """

    sound: bytes = dataclasses.field(repr=False)
    name: str
    speaker: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    translate: bool = False


@dataclasses.dataclass(frozen=True)
class Result:
    """What was said; translation as writers.translate has it, or {"error"} where the translator failed."""

    transcript: Transcript
    translation: dict[str, Any] | None
    error: str = ""  # of the translator, for the log


class Engine:
    """One recogniser, one more that is adapted to the person who was asked for last, and a translator."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Loads what the arguments name.

        Raises:
          ValueError: if a model cannot be had; its message says why.
        """
        self.args = args
        self.system = options.make_system(args)
        self.personal: dict[str, Recogniser] = {}
        self.translator = self._make_translator() if args.translate_to else None

    def _make_translator(self) -> Translator:
        """What the translator on this machine writes is not kept on disk; what is paid for is, and counted there."""
        billed = self.args.mt == "deepl"
        return options.make_translator(self.args, cache_folder() / "translations.sqlite" if billed else None)

    @property
    def name(self) -> str:
        """The model's, without the folder it lies in."""
        return Path(self.system.name).name if self.args.checkpoint is None else self.system.name

    @property
    def languages(self) -> list[str]:
        """Those that a request may name."""
        tokenizer = self.system.tokenizer
        return list(tokenizer.languages) if tokenizer.is_multilingual else ["en"]

    def speakers(self) -> list[str]:
        """Folders of those whom the checkpoint is adapted to; nobody where a system of it was chosen."""
        if self.args.checkpoint is None or self.args.system:
            return []
        return sorted(p.name for p in (self.args.checkpoint / "personalize").glob("*/") if (p / "params").is_dir())

    def knows(self, speaker: str) -> bool:
        """Whether the checkpoint is adapted to somebody."""
        run = self.args.checkpoint
        return run is not None and personal_folder(run, speaker).name in self.speakers()

    def recogniser(self, speaker: str) -> Recogniser:
        """The server's own, or the one of a speaker, which stays until another speaker's is asked for."""
        if speaker in ("", self.args.speaker):
            return self.system
        if speaker not in self.personal:
            self.personal.clear()  # before the next is read: there are never three
            self.personal[speaker] = options.make_system(self.args, speaker)
        return self.personal[speaker]

    def run(self, task: Task, job: Job) -> Result:
        """Transcribes and translates a recording.

        Raises:
          AudioError: if it cannot be read, or is longer than --max_minutes.
          Gone: if nobody waits for it any more.
        """
        job.check()
        samples = load_audio(io.BytesIO(task.sound), name=task.name, longest_s=60.0 * self.args.max_minutes)
        how = options.transcribe_options(self.args, **task.options)
        transcript = self._transcribe(samples, how, self.recogniser(task.speaker), job.check)
        if not task.translate:
            return Result(transcript, None)
        assert self.translator is not None
        try:
            return Result(transcript, writers.translate(self.translator, transcript)[1])
        except Exception as error:  # it costs no transcript
            return Result(transcript, {"error": str(error)}, place(error))
        finally:
            if isinstance(self.translator, CachedTranslator) and self.translator.cache.path is None:
                self.translator.cache = Cache(None)  # nobody's words stay in memory

    def _transcribe(
        self, samples: np.ndarray, how: TranscribeOptions, system: Recogniser, check: Callable[[], None]
    ) -> Transcript:
        """check: is called after every window, and may raise."""
        for step in transcribe(system, [lambda: samples], how):
            check()
            if step.error is not None:
                raise step.error
            if step.transcript is not None:
                return step.transcript
        raise AssertionError("a recording ends with a transcript or an error")

    def warm_up(self) -> Steps:
        """Compiles, by using them, the programs that requests will use: search and fallback for every length.

        The translator is first: its weights take longest. Longer texts and parts side by side (--cut_at_pauses) still
        compile programs when they first come.
        """
        if self.translator is not None and self.args.mt == "local":  # DeepL has nothing to compile, and is paid
            for number, sentence in enumerate(SENTENCES, 1):
                say = functools.partial(self.translator.translate, [sentence])
                yield f"preparing the translator, {number} of {len(SENTENCES)}", say
        shots = sorted(SPEECH.parent.glob("*.opus"))[:16]
        speech = np.concatenate([load_audio(path) for path in shots])
        margin = getattr(self.system, "margin_s", 0.0)
        lengths = [int((s - margin) * SAMPLE_RATE) for s in WINDOWS_S]
        each = {self.system.window(n): n for n in lengths}  # samples of every length that is a program of its own
        tried = [*each.values(), *([] if self.system.short_timestamps else [35 * SAMPLE_RATE])]
        for number, (n, t) in enumerate(product(tried, (0.0, FALLBACK)), 1):
            how = options.transcribe_options(self.args, temperatures=(t,))
            hear = functools.partial(self._transcribe, speech[:n], how, self.system, lambda: None)
            yield f"preparing the recogniser, {number} of {2 * len(tried)}", hear
