"""Trains and judges variants of a configuration over several seeds: one command, a table, nothing done twice.

  python -m jaxmoe.ablate --config=configs/ablations/NAME.py [--workdir=DIR] [--only=VARIANT,...] [--seeds=0,1,2]

The file holds get_config(), the configuration that all variants start from, and VARIANTS: name -> Variant. The result of
every phase is kept once, under DIR/phases by its fingerprint: variants share what they have in common, a run that was
killed goes on where it stopped, and a new variant costs only itself. Writes

  DIR/<variant>/seed-<n>/hypotheses.jsonl   one line an utterance of the held-out voices
  DIR/table.md, DIR/table.json              WER, intervals over speakers, paired differences, routing

Seeds draw voices, speakers, channels, initial parameters and batches; figures pool the utterances of all seeds.
"""

import dataclasses
import json
import os
from pathlib import Path
import runpy
import sys
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict
import numpy as np

from jaxmoe import stages

CONFIG = flags.DEFINE_string("config", None, "Grid: configs/ablations/NAME.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Files of the grid; checkpoints/ablations/<name> if not given.")
ONLY = flags.DEFINE_list("only", [], "Variants to run; all if not given.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds to run.")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the table.

    Args:
      title: for people.
      changes: fields of the configuration that differ, "group.field" -> value.
      system: what is judged after training, "moe" or "lora" (or "whisper-v2", which trains nothing).
      against: the row it is compared with, "" for none.
    """

    title: str
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    system: str = "moe"
    against: str = ""


TRAINS = {
    "moe": ("prepare", "embed", "cluster", "gate", "experts", "joint"),
    "lora": ("prepare", "embed", "baseline"),
    "whisper-v2": ("prepare", "embed"),
}


def configured(base: ConfigDict, variant: Variant, seed: int) -> ConfigDict:
    """The configuration of a variant and seed. Raises KeyError for a field that does not exist."""
    config = base.copy_and_resolve_references()
    config.update_from_flattened_dict({"seed": seed, **variant.changes})
    return config.lock()


def run_phases(config: ConfigDict, root: Path, workdir: Path, names: tuple[str, ...]) -> None:
    """Runs phases in `workdir`, whose folders are links to root/phases/<folder>-<fingerprint>."""
    workdir.mkdir(parents=True, exist_ok=True)
    for name in names:
        folder = stages.PHASES[name].folder
        shared = root / "phases" / f"{folder}-{stages.fingerprint(config, name)}"
        shared.mkdir(parents=True, exist_ok=True)
        link = workdir / folder
        if link.is_symlink():
            link.unlink()
        link.symlink_to(os.path.relpath(shared, workdir))
        stages.run(config, workdir, name)


def run_variant(base: ConfigDict, variant: Variant, seed: int, root: Path, workdir: Path) -> list[dict[str, Any]]:
    """Trains and recognises; returns one line an utterance of the evaluation split."""
    from jaxmoe.data import prepared
    from jaxmoe.eval import systems
    from jaxmoe.phases import evaluate

    config = configured(base, variant, seed)
    trained = TRAINS[variant.system]
    mine = {name: stages.fingerprint(config, name) for name in trained} | {"system": variant.system}
    done, file = workdir / "done.json", workdir / "hypotheses.jsonl"
    if done.exists() and json.loads(done.read_text()) == mine:
        return [json.loads(line) for line in file.read_text().splitlines()]
    run_phases(config, root, workdir, trained)
    items = prepared.open_metadata(workdir, "evaluation")
    found = evaluate.recognise(config, workdir, systems.get(variant.system), items)
    about, said = ("id", "speaker", "voice", "etiology", "severity", "prompt_seen"), ("hypothesis", "gates")
    lines = [
        {"seed": seed, **{k: item[k] for k in about}, "reference": item["text"], **{k: x[k] for k in said}}
        for item, x in zip(items, found, strict=True)
    ]
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    done.write_text(json.dumps(mine))
    return lines


def row(variant: Variant, lines: list[dict[str, Any]], rival: list[dict[str, Any]] | None) -> dict[str, Any]:
    """Figures of a variant: WER with its interval over speakers, difference to its rival, routing."""
    from jaxmoe.eval import bootstrap, wer
    from jaxmoe.model.moe import usage

    def sums(lines: list[dict[str, Any]]) -> np.ndarray:
        counts = wer.score([x["reference"] for x in lines], [x["hypothesis"] for x in lines])
        index, number = bootstrap.speaker_index([f"{x['seed']}/{x['speaker']}" for x in lines])
        return bootstrap.speaker_sums(np.stack([counts.errors, counts.words], 1), index, number)

    rate = lambda chosen: float(wer.rate(sums(chosen).sum(0))) if chosen else None
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
    from jaxmoe.eval import bootstrap

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
            "" if r["unseen_prompts"] is None else f"{r['unseen_prompts']:.1f}", r["against"], difference,
            f"{r['relative']:+.0f} %" if "relative" in r else "", f"{adjusted[name]:.3f}" if name in adjusted else "",
            ", ".join(f"{e:.1f}" for e in r.get("effective_experts", [])),
            ", ".join(f"{100 * u:.0f} %" for u in r.get("busiest", [])),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> None:
    if len(argv) > 1 or not CONFIG.value:
        raise app.UsageError("--config=configs/ablations/NAME.py is needed, and nothing but flags.")
    logging.set_verbosity(logging.WARNING)
    from jaxmoe.compilation import enable_cache

    enable_cache()
    grid = runpy.run_path(CONFIG.value)
    variants: dict[str, Variant] = grid["VARIANTS"]
    if unknown := set(ONLY.value) - set(variants):
        sys.exit(f"error: --only={','.join(sorted(unknown))}: unknown; there are {', '.join(variants)}.")
    root = Path(WORKDIR.value or Path("checkpoints") / "ablations" / Path(CONFIG.value).stem)
    lines: dict[str, list[dict[str, Any]]] = {}
    seeds = [int(s) for s in SEEDS.value]
    for seed in seeds:
        for name, variant in variants.items():
            if ONLY.value and name not in ONLY.value:
                continue
            print(f"== {name}, seed {seed}", flush=True)
            found = run_variant(grid["get_config"](), variant, seed, root, root / name / f"seed-{seed}")
            lines.setdefault(name, []).extend(found)
            write(root, variants, lines)
    print((root / "table.md").read_text())


def write(root: Path, variants: dict[str, Variant], lines: dict[str, list[dict[str, Any]]]) -> None:
    """DIR/table.md and table.json of what has been run; a rival is compared over the seeds that both have."""
    rows = {}
    for name, mine in lines.items():
        have = {x["seed"] for x in mine}
        rival = [x for x in lines.get(variants[name].against, []) if x["seed"] in have]
        same = [x["id"] for x in rival] == [x["id"] for x in mine]
        rows[name] = row(variants[name], mine, rival if same else None)
    (root / "table.json").write_text(json.dumps(rows, indent=1))
    (root / "table.md").write_text(table(rows))


if __name__ == "__main__":
    app.run(main)
