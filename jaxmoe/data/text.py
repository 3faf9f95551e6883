"""Text <-> Whisper's tokens, and the normaliser that WER is measured after."""

from collections.abc import Iterable
import functools
import json
import os
from pathlib import Path
import re

import tokenizers

SECONDS_PER_TIMESTAMP = 0.02  # 30 s / 1500 encoder positions
_TASKS = ("translate", "transcribe")


class Tokenizer:
    """Whisper's byte-level BPE with its special tokens.

    Ids at and after `eot` are special. The timestamps <|0.00|> ... <|30.00|> follow `no_timestamps`, whether the file
    has them or not.
    `suppress_tokens` and `suppress_begin` are what openai/whisper never, and never at the start, decodes.
    """

    def __init__(self, backend: tokenizers.Tokenizer, folder: Path | None = None) -> None:
        """Wraps a loaded tokenizer; `folder` is where its files are.

        Raises:
          ValueError: it is not Whisper's.
        """
        backend.encode_special_tokens = True  # "<|endoftext|>" in a transcript is text
        self._backend = backend
        self.folder = folder
        self.eot = self._special("<|endoftext|>")
        self.sot = self._special("<|startoftranscript|>")
        self.translate = self._special("<|translate|>")
        self.transcribe = self._special("<|transcribe|>")
        self.sot_lm = self._special("<|startoflm|>")
        self.sot_prev = self._special("<|startofprev|>")
        self.no_speech = self._special("<|nospeech|>", "<|nocaptions|>")
        self.no_timestamps = self._special("<|notimestamps|>")
        self.timestamp_begin = self.no_timestamps + 1
        # The English-only models have GPT-2's vocabulary, one token shorter than the multilingual one.
        self.is_multilingual = self.eot != 50256
        names = [backend.id_to_token(i) or "" for i in range(self.sot + 1, self.translate)]
        self.languages: tuple[str, ...] = tuple(re.sub(r"<\|(.+)\|>", r"\1", name) for name in names)

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Tokenizer":
        """The tokenizer of a model's folder: tokenizer.json, or else vocab.json with merges.txt.

        Raises:
          ValueError: the folder has neither, or they are not Whisper's.
        """
        folder = Path(folder)
        single, vocabulary, merges = (folder / n for n in ("tokenizer.json", "vocab.json", "merges.txt"))
        if single.is_file():
            try:
                return cls(tokenizers.Tokenizer.from_file(str(single)), folder)
            except Exception as error:  # the library raises nothing narrower
                raise ValueError(f"{single}: {error}") from error
        if vocabulary.is_file() and merges.is_file():
            return cls(_from_vocabulary(vocabulary, merges, folder / "added_tokens.json"), folder)
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:20]) if folder.is_dir() else "no folder"
        raise ValueError(
            f"{folder}: found {found or 'nothing'}, expected tokenizer.json, or vocab.json and merges.txt; "
            "copy them from the original model."
        )

    def save(self, path: Path) -> None:
        """Writes tokenizer.json."""
        self._backend.save(str(path))

    def _special(self, *names: str) -> int:
        for name in names:
            if (i := self._backend.token_to_id(name)) is not None:
                return i
        raise ValueError(f"{self.folder or 'the tokenizer'} has no token {names[0]}: it is not Whisper's.")

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone; Whisper's transcripts begin with a space."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of ids. Special tokens are left out, or written as <|en|>, <|1.20|> and so on."""
        pieces: list[str] = []
        run: list[int] = []
        for i in [*map(int, ids), self.eot]:
            if i < self.eot:
                run.append(i)
            elif not skip_special:
                pieces += [self._backend.decode(run, skip_special_tokens=False), self._name(i)]
                run = []
        if skip_special:
            return self._backend.decode(run, skip_special_tokens=False)
        return "".join(pieces[:-1])

    def _name(self, i: int) -> str:
        if i >= self.timestamp_begin:
            return f"<|{(i - self.timestamp_begin) * SECONDS_PER_TIMESTAMP:.2f}|>"
        return self._backend.id_to_token(i) or f"<|{i}|>"

    def decode_with_timestamps(
        self, ids: Iterable[int], duration_s: float = 30.0
    ) -> list[tuple[float, float, list[int]]]:
        """Splits decoded ids at their timestamps into segments (start_s, end_s, text ids).

        A segment without a start begins where the last one ended; one without an end runs to `duration_s`.
        """
        segments: list[tuple[float, float, list[int]]] = []
        start, run = 0.0, []
        for i in map(int, ids):
            if i < self.eot:
                run.append(i)
            elif i >= self.timestamp_begin:
                at = min((i - self.timestamp_begin) * SECONDS_PER_TIMESTAMP, duration_s)
                if run:
                    segments.append((start, max(start, at), run))
                start, run = at, []
        if run:
            segments.append((start, max(start, duration_s), run))
        return segments

    def sot_sequence(self, language: str = "en", task: str = "transcribe", timestamps: bool = False) -> tuple[int, ...]:
        """The prompt of a transcript: <|startoftranscript|>, language and task if multilingual, <|notimestamps|>.

        Raises:
          ValueError: a language or task that this model does not have.
        """
        if task not in _TASKS:
            raise ValueError(f"task={task!r}, expected one of {', '.join(_TASKS)}.")
        end = () if timestamps else (self.no_timestamps,)
        if not self.is_multilingual:
            if (language, task) != ("en", "transcribe"):
                raise ValueError(
                    f"language={language!r}, task={task!r}, but this model is English-only and transcribes; "
                    "take the multilingual model of its size (its name without .en)."
                )
            return (self.sot, *end)
        if language not in self.languages:
            raise ValueError(f"language={language!r}, expected one of {', '.join(self.languages)}.")
        return (self.sot, self.language_id(language), self.translate if task == "translate" else self.transcribe, *end)

    def language_id(self, language: str) -> int:
        """The token of a language code such as "de"."""
        return self._special(f"<|{language}|>")

    @functools.cached_property
    def non_speech_tokens(self) -> tuple[int, ...]:
        """Tokens of speaker tags, music and other annotations that are not spoken, in ascending order.

        Source: openai/whisper, whisper/tokenizer.py, Tokenizer.non_speech_tokens.
        """
        symbols = list('"#()*+/:;<=>@[\\]^_`{|}~「」『』')
        symbols += "<< >> <<< >>> -- --- -( -[ (' (\" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪".split()
        music = list("♩♪♫♬♭♮♯")  # each begins with a byte token of its own; that one is suppressed
        ids = {self.encode(" -")[0], self.encode(" '")[0]}  # between words, hyphens and quotes stay allowed
        for symbol in symbols + music:
            for tokens in (self.encode(symbol), self.encode(" " + symbol)):
                if len(tokens) == 1 or symbol in music:
                    ids.add(tokens[0])
        return tuple(sorted(ids))

    @functools.cached_property
    def suppress_tokens(self) -> tuple[int, ...]:
        """non_speech_tokens and the special tokens that only a prompt may hold, in ascending order."""
        prompt = (self.sot, self.translate, self.transcribe, self.sot_lm, self.sot_prev, self.no_speech)
        return tuple(sorted({*self.non_speech_tokens, *prompt}))

    @functools.cached_property
    def suppress_begin(self) -> tuple[int, ...]:
        """A blank and the end: neither may be the first token."""
        return (*self.encode(" "), self.eot)


def _from_vocabulary(vocabulary: Path, merges: Path, added: Path) -> tokenizers.Tokenizer:
    """Byte-level BPE of transformers' older file formats."""
    model = tokenizers.models.BPE.from_file(str(vocabulary), str(merges))
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    names: dict[str, int] = json.loads(added.read_text("utf-8")) if added.is_file() else {}
    # "<|endoftext|>" is in vocab.json; the others take the ids that follow, in this order.
    special = ["<|endoftext|>", *sorted(names, key=names.__getitem__)]
    backend.add_special_tokens([tokenizers.AddedToken(n, special=True, normalized=False) for n in special])
    if wrong := [n for n, i in names.items() if backend.token_to_id(n) != i]:
        raise ValueError(f"{added}: {wrong[0]} has the id {names[wrong[0]]}, which does not follow {vocabulary.name}.")
    return backend


class EnglishNormalizer:
    """Lower case, no punctuation or fillers, numbers as digits, American spelling: what WERs of Whisper are after.

    Source: openai/whisper, whisper/normalizers/english.py, in transformers' version; spelling map english.json.
    """

    def __init__(self) -> None:
        # At import it advises to install PyTorch, which nothing here needs.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

        spelling = json.loads((Path(__file__).parent / "english.json").read_text("utf-8"))
        self._normalize = EnglishTextNormalizer(spelling)

    def __call__(self, text: str) -> str:
        return self._normalize(text).strip()
