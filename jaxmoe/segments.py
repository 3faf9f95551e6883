"""Segments of a transcript: their fields, how a window's tokens are cut into them, and signs of a loop."""

import dataclasses
import re
from typing import Any
import zlib

from jaxmoe.data.text import SECONDS_PER_TIMESTAMP, Tokenizer

FRAMES_PER_SECOND = 100  # mel frames of 10 ms
FRAMES_PER_TIMESTAMP = round(SECONDS_PER_TIMESTAMP * FRAMES_PER_SECOND)  # 2
SHORTEST_STEP = FRAMES_PER_SECOND  # a window that would move by less moves past its whole content


@dataclasses.dataclass
class Segment:
    """A stretch of speech; times in seconds from the start of the recording.

    Args:
      flags: doubts about it: "repetition", "low_confidence", "no_speech".
      withheld: what an adapted decoder wrote where Whisper itself hears no speech; `text` is then "".
    """

    start: float
    end: float
    text: str
    tokens: list[int]
    seek: int  # where its window starts, in frames of 10 ms
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    flags: list[str]
    withheld: str = ""


@dataclasses.dataclass
class Transcript:
    """All of a recording; `flags` are those of any of its segments, `gates` [E] the mean over its windows by what each
    took the transcript on; None without experts."""

    text: str
    segments: list[Segment]
    language: str
    duration_s: float
    flags: list[str]
    gates: list[float] | None = None


def segment_dict(segment: Segment, number: int) -> dict[str, Any]:
    """A segment as JSON, with openai/whisper's names."""
    return {"id": number, **dataclasses.asdict(segment)}


def compression_ratio(text: str) -> float:
    """Bytes of the text over bytes of it compressed by zlib; above 2.4 it repeats itself (openai/whisper)."""
    data = text.encode("utf-8")
    return len(data) / len(zlib.compress(data))


def repeats(text: str, times: int = 4, words: int = 8) -> bool:
    """Whether a phrase of up to 10 words stands `times` times in a row and fills at least `words` words."""
    said = re.findall(r"\w+", text.lower())
    for n in range(1, 11):
        run = n
        for i in range(n, len(said)):
            run = run + 1 if said[i] == said[i - n] else n
            if run >= max(times * n, words):
                return True
    return False


def split(tokens: list[int], tokenizer: Tokenizer, content: int) -> tuple[list[tuple[float, float, list[int]]], int]:
    """Cuts a window's tokens at pairs of timestamps.

    Args:
      content: frames of the window that hold sound.

    Returns:
      (start_s, end_s, tokens) of each segment, times from the window's start and within its content; and the frames to
      move on by: to the last pair, whose later half begins an unfinished segment; by all of the content where the text
      ends with one timestamp (no speech follows) or has no pair at all.
    """
    begin = tokenizer.timestamp_begin
    stamp = [t >= begin for t in tokens]
    cuts = [i for i in range(1, len(tokens)) if stamp[i - 1] and stamp[i]]
    seconds = lambda t: min((t - begin) * SECONDS_PER_TIMESTAMP, content / FRAMES_PER_SECOND)
    pieces: list[tuple[float, float, list[int]]] = []
    step = content
    ends_closed = stamp[-2:] == [False, True]
    if cuts and not ends_closed:
        to = (tokens[cuts[-1] - 1] - begin) * FRAMES_PER_TIMESTAMP
        if SHORTEST_STEP <= to < content:
            step = to
    for first, last in zip([0, *cuts], [*cuts, len(tokens)], strict=True):
        piece = tokens[first:last]
        if step < content and last == len(tokens):
            break  # unfinished: the next window starts with it
        if piece:
            start = seconds(piece[0]) if piece[0] >= begin else 0.0
            end = seconds(piece[-1]) if piece[-1] > begin and len(piece) > 1 else content / FRAMES_PER_SECOND
            pieces.append((start, max(start, end), piece))
    return pieces, step
