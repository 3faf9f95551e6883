"""Translates the transcripts of utterances that have no German, so that BLEU can be computed and pairs trained on.

Reads   WORKDIR/corpus
Writes  WORKDIR/references/references.jsonl  one line an utterance: id, translation, translation_origin

Corpus and German of people stay as they are: data/prepared.py puts these beside them. The origin names the translator,
and the report says it with every BLEU: a system that uses the same translator is measured against itself.
"""

import json
import os
from pathlib import Path

from ml_collections import ConfigDict

from jaxmoe import mt
from jaxmoe.data import prepared
from jaxmoe.weights import cache_folder


def run(config: ConfigDict, workdir: Path) -> None:
    """Raises: TranslatorUnavailable, BudgetExceeded or RequestError: what is translated is in the cache."""
    rows = [
        row
        for split in prepared.splits(workdir)
        for row in prepared.open_metadata(workdir, split)
        if not row["translation"]
    ]
    print(f"references: {len(rows)} utterances without German, {len({row['text'] for row in rows})} distinct sentences")
    german: list[str] = []
    origin = ""
    if rows:
        fields = dict(config.mt) | {"engine": config.references.engine}
        translator = mt.make(**fields, cache_path=cache_folder() / "translations.sqlite")
        german, origin = translator.translate([row["text"] for row in rows]), translator.name
    lines = [
        json.dumps({"id": row["id"], "translation": text, "translation_origin": origin}, ensure_ascii=False)
        for row, text in zip(rows, german, strict=True)
    ]
    path = workdir / prepared.REFERENCES
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.replace(temporary, path)
