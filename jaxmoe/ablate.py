"""Trains and judges variants of a configuration over several seeds: one command, a table, nothing done twice.

  python -m jaxmoe.ablate --config=configs/ablations/NAME.py [--workdir=DIR] [--only=VARIANT,...] [--seeds=0,1,2]

The file holds get_config(), the configuration that all variants start from, and VARIANTS: name -> Variant. Results of
phases are kept once, under DIR/phases by their fingerprint: variants share what they have in common, a run that was
killed goes on where it stopped, and a new variant costs only itself. Writes

  DIR/<variant>/seed-<n>/hypotheses.jsonl   one line an utterance of the held-out voices
  DIR/table.md, DIR/table.json              WER, intervals over speakers, paired differences, routing

Seeds draw voices, speakers, channels, initial parameters and batches; figures pool the utterances of all seeds.
"""

import json
import os
from pathlib import Path
import runpy
import sys
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from jaxmoe import options, stages
from jaxmoe.eval.ablation import Variant, row, table

TRAINS = {
    "moe": ("prepare", "embed", "cluster", "gate", "experts", "joint"),
    "moe-encoder": ("prepare", "embed", "cluster", "gate", "experts", "joint", "encoder"),
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
    from jaxmoe.eval.run import split_clips

    config = configured(base, variant, seed)
    trained = TRAINS[variant.system]
    mine = {name: stages.fingerprint(config, name) for name in trained} | {"system": variant.system}
    done, file = workdir / "done.json", workdir / "hypotheses.jsonl"
    if done.exists() and json.loads(done.read_text()) == mine:
        return [json.loads(line) for line in file.read_text().splitlines()]
    run_phases(config, root, workdir, trained)
    items = prepared.open_metadata(workdir, "evaluation")
    part = systems.get(variant.system).recogniser
    assert part is not None, "variants are of systems that recognise"
    said = part.function()(config, workdir, part, split_clips(workdir, "evaluation"))
    found = {x["id"]: x for batch in said for x in batch}
    about = ("id", "speaker", "voice", "etiology", "severity", "prompt_seen")
    lines = [
        {"seed": seed, **{k: item[k] for k in about}, "reference": item["text"]}
        | {k: found[item["id"]][k] for k in ("hypothesis", "gates")}
        for item in items
    ]
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    done.write_text(json.dumps(mine))
    return lines


def main() -> None:
    p = options.command("ablate", __doc__)
    p.add_argument("--config", type=Path, required=True, help="configs/ablations/NAME.py")
    p.add_argument("--workdir", type=Path, help="(default: checkpoints/ablations/NAME)")
    p.add_argument("--only", default="", help="variants, with commas between (default: all)")
    p.add_argument("--seeds", default="0,1,2", help="(default: %(default)s)")
    args = p.parse_args()
    logging.set_verbosity(logging.WARNING)  # Orbax logs every file at INFO
    from jaxmoe.compilation import enable_cache
    from jaxmoe.memory import reuse_memory

    enable_cache()
    reuse_memory()
    sys.path.insert(0, str(Path.cwd()))  # so that one configuration can import another
    grid = runpy.run_path(str(args.config))
    variants: dict[str, Variant] = grid["VARIANTS"]
    chosen = args.only.split(",") if args.only else list(variants)
    if unknown := set(chosen) - set(variants):
        p.error(f"--only={','.join(sorted(unknown))}: unknown; there are {', '.join(variants)}.")
    root = args.workdir or Path("checkpoints") / "ablations" / args.config.stem
    lines: dict[str, list[dict[str, Any]]] = {}
    for seed in map(int, args.seeds.split(",")):
        for name in chosen:
            print(f"== {name}, seed {seed}", flush=True)
            found = run_variant(grid["get_config"](), variants[name], seed, root, root / name / f"seed-{seed}")
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
    main()
