"""Faults that make figures worthless although every file is in order."""

import json
from pathlib import Path

import numpy as np

from jaxmoe.report.read import SystemRun, Utterances

FEW = 3  # utterances of a group: so many may all be empty by chance


def refuse_leaks(workdir: Path, utterances: Utterances) -> None:
    """Raises: ValueError naming a speaker who was trained on and is evaluated as well."""
    evaluated = set(utterances["speaker"])
    for split in ("train", "validation"):
        path = workdir / "corpus" / f"metadata_{split}.jsonl"
        if not path.is_file():
            continue
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                speaker = json.loads(line)["speaker"]
                if speaker in evaluated:
                    raise ValueError(
                        f"{path}, line {number}: speaker {speaker!r} is evaluated as well; expected splits without a"
                        " common speaker. Figures on people the model has heard are worthless: run prepare again."
                    )


def warnings(runs: list[SystemRun], groups: dict[str, np.ndarray]) -> list[str]:
    """What a reader has to know before believing a figure: groups for which a system wrote nothing at all."""
    out = []
    for run in runs:
        for what, texts in (("recognised", run.hypotheses), ("translated", run.translations)):
            empty = np.array([not text.strip() for text in texts])
            if not len(empty) or empty.all():  # e.g. no translator: the table says so
                continue
            for dimension, values in groups.items():
                for value in sorted(set(values)):
                    chosen = values == value
                    if chosen.sum() >= FEW and empty[chosen].all() and dimension != "speaker":
                        out.append(
                            f"{run.name} {what} nothing in all {chosen.sum()} utterances with {dimension} {value}:"
                            " its files may be damaged."
                        )
    return out
