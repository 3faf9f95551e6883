"""A prepared corpus without audio."""

import json
from pathlib import Path


def write(workdir: Path, **splits: list[tuple[str, str]]) -> None:
    """Pairs (English, German or "") of each split, with ids such as train-0."""
    (workdir / "corpus").mkdir(parents=True)
    for split, pairs in splits.items():
        rows = [
            {"id": f"{split}-{n}", "text": en, "translation": de, "translation_origin": "corpus" if de else ""}
            for n, (en, de) in enumerate(pairs)
        ]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (workdir / "corpus" / f"metadata_{split}.jsonl").write_text("".join(lines), encoding="utf-8")
