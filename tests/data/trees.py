"""Generated corpora, laid out as the real ones, with the oddities that these have."""

from collections.abc import Callable
import json
import os
from pathlib import Path

import numpy as np
import soundfile

ETIOLOGIES = ("Parkinson's Disease", "ALS", "Cerebral Palsy", "Down Syndrome", "Stroke")
SENTENCES = ("Turn off the light.", "Call my sister [smiling].", "I (uh) want tea.", "It is {g:four} o'clock.")


def sound(path: Path, seconds: float = 0.5, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = 0.1 * np.random.default_rng(seed).standard_normal(int(16000 * seconds))
    soundfile.write(path, noise.astype(np.float32), 16000)


def sap_file(name: str, number: int, **changes: object) -> dict[str, object]:
    """An entry of Files[]."""
    prompt = {
        "Prompt Text": SENTENCES[number % 4].split(" [")[0],
        "Transcript": SENTENCES[number % 4],
        "Category Description": "Digital Assistant Commands",
        "Sub Category Description": "Home",
    }
    file = {
        "Filename": name,
        "Created": "2024-01-01",
        "CreatedOrModified": "2024-01-02",
        "Comment": "",
        "Prompt": prompt,
    }
    return file | changes


def sap_speaker(number: int, files: list[dict[str, object]], **changes: object) -> dict[str, object]:
    return {
        "Contributor ID": f"{number:08d}-0000-4000-8000-000000000000",
        "Etiology": ETIOLOGIES[number % 5],
        "Do you consider U.S. English to be your first language?": "No" if number % 7 == 6 else "Yes",
        "What language(s) do you speak?": "English, Spanish",
        "BlockNumber": 1,
        "Files": files,
    } | changes


def sap_tree(
    root: Path, speakers: int, per_speaker: int, place: Callable[[Path, int], None], dev_share: float = 0.15
) -> None:
    """A release: train with a folder a speaker, dev with metadata/ and audio/; `place(path, n)` makes recording n."""
    n = 0
    for s in range(speakers):
        id_ = f"{s:08d}-0000-4000-8000-000000000000"
        names = [f"{id_}_{i // 100}_{i % 100}.wav" for i in range(per_speaker)]
        if s < speakers * dev_share:
            metadata, audio = root / "Dev/metadata" / f"{id_}.json", root / "Dev/audio"
        else:
            metadata, audio = root / "Train" / id_ / f"{id_}.json", root / "Train" / id_
        metadata.parent.mkdir(parents=True, exist_ok=True)
        audio.mkdir(parents=True, exist_ok=True)
        metadata.write_text(json.dumps(sap_speaker(s, [sap_file(name, n + i) for i, name in enumerate(names)])))
        for name in names:
            place(audio / name, n)
            n += 1


def linked(clips: list[Path]) -> Callable[[Path, int], None]:
    """Recordings that are hard links to `clips`, in turn; a copy where a clip has too many links."""

    def place(path: Path, n: int) -> None:
        os.link(clips[n % len(clips)], path)

    return place
