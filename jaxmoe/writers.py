"""Transcripts as txt, srt, vtt and json files, each written whole or not at all, and the names of those files."""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import json
import os
from pathlib import Path
import tempfile
from typing import Any

from jaxmoe.mt import Translator
from jaxmoe.segments import Transcript, segment_dict

FORMATS = ("txt", "srt", "vtt", "json")


@dataclasses.dataclass(frozen=True)
class Cue:
    """A line of text and when it is said, in seconds."""

    start: float
    end: float
    text: str


def cues(transcript: Transcript) -> list[Cue]:
    """The segments as cues, but for those whose text is withheld."""
    return [Cue(s.start, s.end, s.text.strip()) for s in transcript.segments if s.text]


def sentences(transcript: Transcript, longest_s: float = 30.0) -> list[Cue]:
    """Segments joined until a sentence ends or `longest_s` is reached: what is given to a translator."""
    joined: list[Cue] = []
    open_ = False
    for cue in cues(transcript):
        if open_ and cue.end - joined[-1].start <= longest_s:
            joined[-1] = Cue(joined[-1].start, cue.end, f"{joined[-1].text} {cue.text}")
        else:
            joined.append(cue)
        open_ = not cue.text.rstrip("\"')]”’ ").endswith((".", "!", "?", "…"))
    return joined


def translate(translator: Translator, transcript: Transcript) -> tuple[list[Cue], dict[str, Any]]:
    """A transcript's sentences in the translator's language: as cues, and as to_json has them of one language."""
    sources = sentences(transcript)
    texts = translator.translate([cue.text for cue in sources]) if sources else []
    cues = [dataclasses.replace(cue, text=text) for cue, text in zip(sources, texts, strict=True)]
    pairs = zip(sources, cues, strict=True)
    rows = [{"start": c.start, "end": c.end, "source": s.text, "text": c.text} for s, c in pairs]
    return cues, {"translator": translator.name, "text": " ".join(texts), "sentences": rows}


def timestamp(seconds: float, *, always_hours: bool, decimal: str) -> str:
    """As openai/whisper writes it: 01:02:03,450 or 02:03.450."""
    ms = round(seconds * 1000)
    hours, ms = divmod(ms, 3_600_000)
    minutes, ms = divmod(ms, 60_000)
    whole, ms = divmod(ms, 1000)
    front = f"{hours:02d}:" if always_hours or hours else ""
    return f"{front}{minutes:02d}:{whole:02d}{decimal}{ms:03d}"


def to_txt(lines: Sequence[Cue]) -> str:
    return "".join(f"{cue.text}\n" for cue in lines)


def _subtitle(cue: Cue, **style: Any) -> str:
    text = cue.text.replace("-->", "->")
    return f"{timestamp(cue.start, **style)} --> {timestamp(cue.end, **style)}\n{text}\n\n"


def to_srt(lines: Sequence[Cue]) -> str:
    return "".join(f"{i}\n{_subtitle(c, always_hours=True, decimal=',')}" for i, c in enumerate(lines, 1))


def to_vtt(lines: Sequence[Cue]) -> str:
    return "WEBVTT\n\n" + "".join(_subtitle(c, always_hours=False, decimal=".") for c in lines)


WRITERS: dict[str, Callable[[Sequence[Cue]], str]] = {"txt": to_txt, "srt": to_srt, "vtt": to_vtt}


def to_json(
    transcript: Transcript, *, audio: str, model: str, translations: dict[str, dict[str, Any]] | None = None
) -> str:
    """openai/whisper's fields (text, segments, language) with the file, its length, the model and doubts (flags).

    Args:
      translations: {language: {"translator", "text", "sentences": [{"start", "end", "source", "text"}]}}.
    """
    content = {
        "text": transcript.text,
        "segments": [segment_dict(s, i) for i, s in enumerate(transcript.segments)],
        "language": transcript.language,
        "audio": audio,
        "duration_s": transcript.duration_s,
        "model": model,
        "flags": transcript.flags,
    }
    if translations is not None:
        content["translations"] = translations
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that its name never stands for a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as f:
            f.write(text)
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's files are for their owner only
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def output_stems(inputs: Sequence[tuple[Path, Path]], suffixes: Iterable[str]) -> list[Path]:
    """The output name, without suffix and below the output folder, of every input; no two share a file.

    An input takes its stem (clip.wav -> clip), below the sub-folder in which it was found. Inputs that would share an
    output take their whole names (clip.wav, clip.mp3 -> clip.wav, clip.mp3), then a stem below more and more of
    their folders (a/clip.wav, b/clip.wav -> a/clip, b/clip). Case does not tell names apart: some disks ignore it.

    Args:
      inputs: (path, sub-folder relative to the folder that was given) with distinct resolved paths.
      suffixes: of the files that will be written, such as ".txt", ".de.txt".
    """
    suffixes = tuple(suffixes)
    levels = [0] * len(inputs)
    while True:
        names = [_name(path, below, level) for (path, below), level in zip(inputs, levels, strict=True)]
        owners: dict[str, set[int]] = {}
        for i, name in enumerate(names):
            for suffix in suffixes:
                owners.setdefault(f"{name.as_posix()}{suffix}".casefold(), set()).add(i)
        clash = {i for who in owners.values() if len(who) > 1 for i in who}
        raised = [i for i in sorted(clash) if levels[i] < 2 * len(inputs[i][0].resolve().parts)]
        if not raised:
            return names
        for i in raised:
            levels[i] += 1


def _name(path: Path, below: Path, level: int) -> Path:
    last = path.name if level % 2 else path.stem
    if level < 2:
        return below / last
    parents = path.resolve().parent.parts[1:]
    return Path(*parents[max(0, len(parents) - level // 2) :], last)
