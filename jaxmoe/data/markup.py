"""Transcript markup of the Speech Accessibility Project: what was said, with and without its disfluencies.

    [prompt]       read out or shown, not said        {g:word}         a guess: kept
    (uh)           a disfluency                       {w:3}, {u:}, {}  three unknown words, one
    (cs: words)    somebody else, audible: kept       ~T ~V            spelled letters: TV
    #dis           at the start, of the whole         {ss:}, {cs:}     other tags: their text
Source: github.com/xiuwenz2/SAPC-template at 2b4b5c05, utils/normalizer.
"""

import functools
import re

_BRACKETS = re.compile(r"\[[^\]]*\]")
_UNOPENED = re.compile(r"^[^\[\]]*\]")  # "...prompt] said": everything up to the stray bracket
_BRACES = re.compile(r"\{([^{}]*)\}")
_PARENTHESES = re.compile(r"\(([^()]*)\)")
_TAG = re.compile(r"^\s*[A-Za-z]{1,3}\s*:")
_DIS = re.compile(r"^\s*#\s*dis\b", re.IGNORECASE)
_SPELLED = re.compile(
    r"~[A-Za-z](?:\s+~[A-Za-z])+"  # ~T ~V
    r"|(?<![\w'])[A-Z](?:\s+[A-Z])+(?![\w'])"  # T V
    r"|(?<![\w'])[A-Za-z](?:\.[A-Za-z])+(?:\.(?!\w)|(?![\w.]))"  # T.V.
    r"|(?<![\w'])[A-Za-z](?:-[A-Za-z])+(?![\w'])"  # T-V
)
_MAX_UNKNOWN = 1000  # words that one {w:N} may stand for: a larger N is a slip of the keyboard


def straight(text: str) -> str:
    """Typewriter apostrophes."""
    return text.replace("\u2019", "'").replace("\u2018", "'")


def join_letters(text: str) -> str:
    """Spelled letters as one word, however they are written: `~T ~V`, `T V`, `T.V.`, `T-V` -> `TV`."""
    return _SPELLED.sub(lambda m: "".join(re.findall("[A-Za-z]", m.group())), text)


@functools.lru_cache(maxsize=4096)  # prompts are read by many
def readings(transcript: str, unknown: str = "") -> tuple[str, str]:
    """(with disfluencies, without them) of a transcript, markup read, case and punctuation kept.

    Words of `(cs: ...)`, said by somebody else, are audible and stay in both.

    Args:
      unknown: the word that stands for each unknown one; "" leaves them out.
    """

    def brace(match: re.Match[str]) -> str:
        inside = match.group(1)
        tag, colon, rest = inside.partition(":")
        name = tag.strip().lower() if colon else ""
        if name == "w":
            number = re.search(r"\d{1,9}", rest)
            return " " + " ".join([unknown] * min(int(number.group()), _MAX_UNKNOWN)) + " " if number else " "
        if name == "u" or not inside.strip():
            return f" {unknown} "
        return f" {_TAG.sub('', inside)} "

    text = _BRACKETS.sub(" ", _DIS.sub(" ", straight(transcript)))
    text = _BRACES.sub(brace, _UNOPENED.sub(" ", text))
    text = join_letters(text).replace("~", " ")
    spoken = _PARENTHESES.sub(lambda m: f" {_TAG.sub('', m.group(1))} ", text)
    fluent = _PARENTHESES.sub(lambda m: f" {_TAG.sub('', m.group(1))} " if _TAG.match(m.group(1)) else " ", text)
    return _tidy(spoken), _tidy(fluent)


def _tidy(text: str) -> str:
    """Single spaces, none before punctuation, and no punctuation that is left without its word."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"\s+([,.?!;:])", r"\1", text)
    return re.sub(r"^[,;:.\s]+|([,;:])[,;:]+", r"\1", text).strip()
