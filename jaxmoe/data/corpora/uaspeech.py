"""UASpeech (http://www.isle.illinois.edu/sst/data/UASpeech): single words, speakers with cerebral palsy and controls.

    audio/<speaker>/M04_B1_UW1_M5.wav          speaker, block, word key, microphone
    audio/control/CM01/CM01_B1_C1_M5.wav
    speaker_wordlist.xls, sheet Word_filename  word key -> word

Keys of uncommon words (U...) are per block there: B1_UW1. The blocks are not used as a split, for all speakers are in
all of them.
"""

from collections.abc import Iterator
from pathlib import Path
import re
from typing import Any

from jaxmoe.data.corpora import CONTROL, Recording, Refused, words

_NAME = re.compile(r"^(C?[FM]\d\d)_(B\d)_([A-Z]+\d*)_(M\d)$")
_SHEET = "Word_filename"
# Intelligibility to unfamiliar listeners. Source: Kim et al., Dysarthric speech database for universal access
# research, Interspeech 2008, and the corpus's own notes.
SEVERITY = {
    **dict.fromkeys(("M04", "F03", "M12", "M01"), "intelligibility very low"),
    **dict.fromkeys(("M07", "F02", "M16"), "intelligibility low"),
    **dict.fromkeys(("M05", "M11", "F04"), "intelligibility mid"),
    **dict.fromkeys(("M09", "M14", "M10", "M08", "F05"), "intelligibility high"),
}


def recordings(path: str, seed: int = 0, *, microphones: str = "M5") -> Iterator[Recording | Refused]:
    """Recordings of all speakers.

    Args:
      path: the folder that holds audio/ and speaker_wordlist.xls.
      seed: not used.
      microphones: of the seven, the ones to take, "M3,M5"; "all" says each word seven times.

    Raises:
      ValueError: no audio or no word list at `path`.
    """
    root = Path(path)
    if not path or not (root / "audio").is_dir():
        raise ValueError(f"config.data.path={path!r}: found no audio/ in it; expected UASpeech's folder.")
    spoken = word_list(next(iter(sorted(root.rglob("speaker_wordlist.xls"))), root / "speaker_wordlist.xls"))
    wanted = {part.strip() for part in microphones.split(",")}
    for file in sorted((root / "audio").rglob("*.wav")):
        match = _NAME.match(file.stem)
        if not match:
            detail = f"found {file.name!r}, expected speaker_block_word_mic.wav"
            yield Refused(file.stem, "unknown name", detail, source=str(file))
        elif microphones == "all" or match[4] in wanted:
            yield _recording(file, match, spoken)


def _recording(file: Path, match: re.Match[str], spoken: dict[str, str]) -> Recording | Refused:
    speaker, block, key, mic = match.groups()
    control = speaker.startswith("C")
    about: dict[str, Any] = {
        "source": str(file),
        "speaker": speaker,
        "etiology": CONTROL if control else "cerebral palsy",
    }
    text = spoken.get(f"{block}_{key}" if key.startswith("U") else key)
    if text is None:
        return Refused(file.stem, "no transcript", f"the word list has no {key} ({block})", **about)
    return Recording(
        id=file.stem,
        text=text,
        path=str(file),
        severity="none" if control else SEVERITY.get(speaker, "unknown"),
        sex="female" if "F" in speaker else "male",
        channel=mic,
        category={"D": "digit", "L": "letter", "C": "command"}.get(key.rstrip("0123456789"), _category(key)),
        **about,
    )


def _category(key: str) -> str:
    return "uncommon word" if key.startswith("U") else "common word" if key.startswith("CW") else "letter"


def word_list(file: Path) -> dict[str, str]:
    """Word key -> word, of the sheet Word_filename.

    Raises:
      ValueError: the file cannot be read or has no such sheet.
    """
    import xlrd

    if not file.is_file():
        raise ValueError(f"{file}: no such file; it comes with UASpeech and holds the words.")
    try:
        book = xlrd.open_workbook(str(file))
    except xlrd.XLRDError as error:
        raise ValueError(f"{file}: {error}; expected the .xls that comes with UASpeech.") from error
    if _SHEET not in book.sheet_names():
        raise ValueError(f"{file}: no sheet {_SHEET}, found {', '.join(book.sheet_names())}.")
    sheet = book.sheet_by_name(_SHEET)
    rows = (sheet.row_values(i) for i in range(sheet.nrows))
    # The columns WORD and FILE NAME; their header row has a space in the key, which no key has.
    return {words(row[1]): words(row[0]) for row in rows if len(row) > 1 and row[0] and " " not in words(row[1])}
