"""TORGO (http://www.cs.toronto.edu/~complingweb/data/TORGO/torgo.html): speakers F01 ... MC04, C for controls.

    {F,M,FC,MC}nn/SessionN/prompts/0001.txt
    {F,M,FC,MC}nn/SessionN/{wav_headMic,wav_arrayMic}/0001.wav

Prompts that are a picture, an instruction or a sound to hold are no transcripts and are set aside.
"""

from collections.abc import Iterator
from pathlib import Path
import re
from typing import Any

from jaxmoe.data.corpora import CONTROL, Recording, Refused, words

_SPEAKER = re.compile(r"^([FM])(C?)\d\d$")
# Source: Mengistu and Rudzicz, Adapting acoustic and lexical models to dysarthric speech, ICASSP 2011.
SEVERITY = {
    **dict.fromkeys(("F01", "M01", "M02", "M04"), "severe"),
    "M05": "moderate to severe",
    "F03": "moderate",
    **dict.fromkeys(("F04", "M03"), "mild"),
}
MICROPHONES = {"head": ("headMic",), "array": ("arrayMic",), "both": ("headMic", "arrayMic")}


def recordings(path: str, seed: int = 0, *, microphone: str = "head") -> Iterator[Recording | Refused]:
    """Recordings of the speakers under `path`.

    Args:
      path: the folder of F01, FC01 and so on, at any depth.
      seed: not used.
      microphone: "head", "array" or "both", which says every prompt twice.

    Raises:
      ValueError: no speaker's folder at `path`, or another microphone.
    """
    if microphone not in MICROPHONES:
        raise ValueError(f"config.torgo.microphone={microphone!r}, expected one of {', '.join(MICROPHONES)}.")
    root = Path(path)
    speakers = sorted(p for p in root.rglob("*") if _SPEAKER.match(p.name) and p.is_dir()) if path else []
    if not speakers:
        raise ValueError(f"config.data.path={path!r}: found no folder such as F01 or MC04; expected TORGO's.")
    for speaker in speakers:
        for session in sorted(p for p in speaker.iterdir() if p.is_dir() and p.name.startswith("Session")):
            for mic in MICROPHONES[microphone]:
                yield from _session(speaker.name, session, mic)


def _session(speaker: str, session: Path, mic: str) -> Iterator[Recording | Refused]:
    match = _SPEAKER.match(speaker)
    assert match, "the caller has matched it"
    etiology = CONTROL if match[2] else "cerebral palsy or ALS"  # which of the two is not published by speaker
    for file in sorted((session / f"wav_{mic}").glob("*.wav")):
        id_ = f"{speaker}/{session.name}/{mic}/{file.stem}"
        about: dict[str, Any] = {"source": str(file), "speaker": speaker, "etiology": etiology}
        prompt = session / "prompts" / f"{file.stem}.txt"
        if not prompt.is_file():
            yield Refused(id_, "no prompt", f"no {prompt.relative_to(session.parent)}", **about)
            continue
        text = words(prompt.read_text("utf-8", errors="replace"))
        if reason := _no_transcript(text):
            yield Refused(id_, "no transcript", f"{reason}: {text[:80]!r}", **about)
            continue
        yield Recording(
            id=id_,
            text=text,
            path=str(file),
            severity="none" if match[2] else SEVERITY.get(speaker, "unknown"),
            sex={"F": "female", "M": "male"}[match[1]],
            channel=mic,
            category="word" if len(text.split()) == 1 else "sentence",
            **about,
        )


def _no_transcript(prompt: str) -> str:
    """Why a prompt is not what was said; "" if it is."""
    if "[" in prompt:
        return "an instruction"
    if ".jpg" in prompt.lower():
        return "a picture to describe"
    if "/" in prompt:
        return "a path"
    return "no prompt" if prompt.lower() == "xxx" else ""
