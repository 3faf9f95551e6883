"""The table of a grid of variants (jaxmoe/ablate.py): what a variant is, and its figures over seeds."""

import dataclasses
from typing import Any

import numpy as np

from jaxmoe.eval import bootstrap, wer
from jaxmoe.model.moe import usage


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the table.

    Args:
      title: for people.
      changes: fields of the configuration that differ, "group.field" -> value.
      system: what is judged after training, "moe", "moe-encoder" or "lora" (or "whisper-v2", which trains nothing).
      against: the row it is compared with, "" for none.
    """

    title: str
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    system: str = "moe"
    against: str = ""


def row(variant: Variant, lines: list[dict[str, Any]], rival: list[dict[str, Any]] | None) -> dict[str, Any]:
    """Figures of a variant: WER with its interval over speakers, difference to its rival, routing."""
    def sums(lines: list[dict[str, Any]]) -> np.ndarray:
        counts = wer.score([x["reference"] for x in lines], [x["hypothesis"] for x in lines])
        index, number = bootstrap.speaker_index([f"{x['seed']}/{x['speaker']}" for x in lines])
        return bootstrap.speaker_sums(np.stack([counts.errors, counts.words], 1), index, number)

    rate = lambda chosen: float(wer.rate(sums(chosen).sum(0))) if chosen else float("nan")
    mine, seeds = sums(lines), sorted({x["seed"] for x in lines})
    out: dict[str, Any] = {
        "title": variant.title,
        "wer": rate(lines),
        "ci95": bootstrap.interval(mine, wer.rate),
        "by_seed": {seed: rate([x for x in lines if x["seed"] == seed]) for seed in seeds},
        "unseen_prompts": rate([x for x in lines if not x["prompt_seen"]]),
        "utterances": len(lines),
        "against": variant.against,
    }
    if rival is not None:
        difference = bootstrap.paired(mine, sums(rival), wer.rate)
        relative = 100 * difference.difference / rate(rival)
        out |= {"difference": difference.difference, "difference_ci95": difference.ci95, "p": difference.p}
        out["relative"] = float(relative)
    if lines[0]["gates"]:
        routing = [usage(np.array([x["gates"] for x in lines if x["seed"] == seed])) for seed in seeds]
        out["effective_experts"] = [r["effective_experts"] for r in routing]
        out["busiest"] = [max(r["usage"]) for r in routing]
    return out


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as Markdown; p values are adjusted for their number (Holm)."""
    compared = [name for name, r in rows.items() if r.get("p") is not None]
    adjusted = dict(zip(compared, bootstrap.holm([rows[n]["p"] for n in compared]), strict=True))
    head = (
        *("variant", "WER", "95 %", "by seed", "unseen prompts", "against", "difference (95 %)", "relative"),
        *("p (Holm)", "effective experts", "busiest"),
    )
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    span = lambda pair: "" if pair is None else f"{pair[0]:.1f} to {pair[1]:.1f}"
    for name, r in rows.items():
        difference = f"{r['difference']:+.1f} ({span(r['difference_ci95'])})" if "difference" in r else ""
        cells = [
            r["title"], f"{r['wer']:.1f}", span(r["ci95"]), ", ".join(f"{w:.1f}" for w in r["by_seed"].values()),
            f"{r['unseen_prompts']:.1f}", r["against"], difference,
            f"{r['relative']:+.0f} %" if "relative" in r else "", f"{adjusted[name]:.3f}" if name in adjusted else "",
            ", ".join(f"{e:.1f}" for e in r.get("effective_experts", [])),
            ", ".join(f"{100 * u:.0f} %" for u in r.get("busiest", [])),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
