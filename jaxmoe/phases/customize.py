"""Makes glossary, translation memory, style rule and instructions for DeepL from the train split.

Reads   WORKDIR/corpus (train pairs with German; validation and evaluation, to leave their sentences out)
Writes  WORKDIR/custom/ glossary.tsv, memory.tmx, style.json (mt/custom.py), counts.json

Nothing is sent: whoever translates with them, such as evaluate, uploads them.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from jaxmoe.data import prepared
from jaxmoe.mt import custom


def run(config: ConfigDict, workdir: Path) -> None:
    """Raises: ValueError where the corpus has no German, or an instruction is too long."""
    c, folder = config.custom, workdir / "custom"
    # What a machine translated would teach DeepL another translator's German, or its own.
    machine = prepared.references(workdir)
    train = [row for row in prepared.open_metadata(workdir, "train") if row["id"] not in machine]
    counts = custom.build(
        folder,
        [(row["text"], row["translation"]) for row in train if row["text"] and row["translation"]],
        custom.held_out(workdir).values(),
        instructions=tuple(c.instructions),
        alpha=c.alpha,
        min_count=c.min_count,
        min_share=c.min_share,
    )
    (folder / "counts.json").write_text(json.dumps(counts))
    print(
        "{glossary} terms and {memory} sentences of memory from {train_pairs} distinct train pairs; "
        "{left_out_as_held_out} are left out because validation or evaluation has them too".format(**counts)
    )
