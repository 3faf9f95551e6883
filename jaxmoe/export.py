"""What a run has trained -> a folder for transformers, PEFT or faster-whisper: python -m jaxmoe.export [options]

Start-up counts here: JAX and all that needs it are imported once the arguments are known to be good.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import os
from pathlib import Path
import shutil
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from jaxmoe import options

if TYPE_CHECKING:
    import numpy as np

    from jaxmoe.system import Run

FORMATS = ("hf", "peft", "ctranslate2")
DTYPES = ("float32", "float16", "int8")
MOST_HEARD = 2000  # recordings that are heard anew for a mean; over so many it moves by under .01
EPILOG = """\
formats:
  hf           a whole Whisper with the adapters merged into it, for transformers: WhisperForConditionalGeneration and
               WhisperProcessor load the folder without network
  peft         the adapters alone, for peft.PeftModel over openai/whisper-...; not where the encoder is adapted too
  ctranslate2  the whole Whisper for faster-whisper; needs pip install -e '.[export]'

gates:
  A gate that chooses experts for each utterance does not fit into one Whisper, so the export fixes what it says: at its
  mean over the training utterances, over one speaker's (--speaker), or at one expert (--gates=3). The command says what
  that gives up. One LoRA (--system=lora) is exported as it is.

window:
  The tools hear 30 s at a time. Adapters trained with config.embed.context="trimmed" heard less silence, and are up to
  3 points of WER worse in such windows; docs/export.md has figures. For export, train with --config.embed.context=full.

The folder gets a README.md. Nothing is left of it if the command fails.

examples:
  python -m jaxmoe.export --checkpoint=checkpoints/quickstart --format=hf --output_dir=out/hf
  python -m jaxmoe.export --checkpoint=checkpoints/quickstart --format=peft --system=lora --output_dir=out/lora
  python -m jaxmoe.export --checkpoint=checkpoints/mine --format=ctranslate2 --dtype=int8 --speaker=ID -o out/ID
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = options.command("export", "Exports what a run has trained for transformers, PEFT or faster-whisper.", EPILOG)
    add = p.add_argument
    add("--checkpoint", type=Path, required=True, metavar="DIR", help="a run's workdir")
    add("--format", choices=FORMATS, required=True, help="for which tool")
    add("--output_dir", "-o", type=Path, required=True, metavar="DIR", help="is made; refused if it holds files")
    options.add_system(p)
    fixed = "of a mixture: mean, or the number of the expert that is taken alone (default: mean)"
    add("--gates", metavar="mean|K", type=_gates, help=fixed)
    personal = "of a mixture: the mean over this speaker's recordings, and what --phase=personalize adapted to them"
    add("--speaker", default="", metavar="ID", help=personal)
    kind = "of the weights; int8 for ctranslate2 (default: %(default)s)"
    add("--dtype", choices=DTYPES, default="float32", help=kind)
    return p


def _gates(text: str) -> int | None:
    if text != "mean" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}, expected mean or the number of an expert, from 0")
    return None if text == "mean" else int(text)


@dataclasses.dataclass(frozen=True)
class Fixed:
    """The mixture that every utterance gets."""

    gates: "np.ndarray"  # [1, E]
    what: str  # is exported, for people
    cost: str  # what is given up by it, for people; "" if nothing


def fix(run: "Run", workdir: Path, expert: int | None, speaker: str) -> Fixed:
    """The gates that are held: one expert's, or the mean over training or over a speaker.

    Raises:
      ValueError: no such expert or speaker, or no gate to take the mean of.
    """
    import numpy as np

    count = run.model.num_experts
    if not count:
        return Fixed(np.zeros((1, 0), np.float32), f"the one LoRA of {run.name}", "")
    if count == 1 and expert is None and not speaker:
        return Fixed(np.ones((1, 1), np.float32), f"{run.name} with its one expert", "")
    lost = "experts are no longer chosen for each utterance"
    if expert is not None:
        if expert >= count:
            raise ValueError(f"--gates={expert}: the run has experts 0 to {count - 1}; name one of them, or mean.")
        alone = np.eye(count, dtype=np.float32)[[expert]]
        return Fixed(alone, f"expert {expert} alone of {run.name}", f"{lost}, and the other {count - 1} are left out")
    gates, total = _gates_of(run, workdir, speaker)
    number = f"{total:,}" if total == len(gates) else f"{len(gates):,} of the {total:,}"
    whose = f"recordings of speaker {speaker}" if speaker else "training utterances"
    mean = gates.mean(0, keepdims=True)
    return Fixed(mean, f"the mixture of {run.name} by the mean of its gate over {number} {whose}", lost)


def _gates_of(run: "Run", workdir: Path, speaker: str) -> tuple["np.ndarray", int]:
    """Gates [U, E] of the training utterances or of a speaker's, and how many of these there are.

    An encoder of Whisper's own has left its embeddings in the run; for another one recordings are heard anew, at most
    MOST_HEARD of them.
    """
    import jax.numpy as jnp
    import numpy as np

    from jaxmoe.data import prepared
    from jaxmoe.data.audio import N_SAMPLES
    from jaxmoe.data.embeddings import Embeddings, with_windows
    from jaxmoe.train.setup import embeddings_folder

    if run.model.routing != "gate":
        raise ValueError(
            f"config.model.routing={run.model.routing!r} in {workdir}: this run was routed by its clusters and has no "
            "gate to take the mean of; take one expert, e.g. --gates=0."
        )
    embeddings, total = [], 0
    for split in prepared.splits(workdir) if speaker else ("train",):
        folder = embeddings_folder(workdir, run.settings["model"]["backbone"], split)
        said = with_windows(prepared.open_metadata(workdir, split), folder)
        rows = [x for x in said if x["samples"] <= N_SAMPLES and speaker in ("", x["speaker"])]
        total += len(rows)
        if rows and run.own_encoder:
            chosen = np.random.default_rng(0).permutation(len(rows))[:MOST_HEARD]
            embeddings.append(_heard(run, workdir, split, [rows[i] for i in sorted(chosen)]))
        elif rows:
            stored = Embeddings(folder)
            embeddings.append(stored.pooled[[stored.row[x["id"]] for x in rows if x["id"] in stored.row]])
    if not total:
        wanted = f"--speaker={speaker}: {workdir} has no recording" if speaker else f"{workdir}: no training utterance"
        raise ValueError(f"{wanted} of up to 30 s; ids are those of corpus/metadata_<split>.jsonl.")
    pooled = jnp.asarray(np.concatenate(embeddings))
    return np.asarray(run.model.gates(run.model.gate_logits(run.params, pooled))), total


def _heard(run: "Run", workdir: Path, split: str, rows: Sequence[dict[str, Any]]) -> "np.ndarray":
    """Embeddings [U, D] of recordings, or windows of some, by the run's own encoder."""
    import numpy as np
    from tqdm import tqdm

    from jaxmoe.data import prepared
    from jaxmoe.data.embeddings import SHARD_ROWS
    from jaxmoe.phases.embed import embed_rows

    source, settings = prepared.open_split(workdir, split), run.settings["embed"]
    settings = {name: settings[name] for name in ("batch_size", "context", "margin_s")}
    out = []
    for start in tqdm(range(0, len(rows), SHARD_ROWS), desc=f"hear {split}", disable=None):
        chosen = rows[start : start + SHARD_ROWS]
        sounds = [source[x["row"]]["audio"][x["start"] :][: x["samples"]] / np.float32(32768.0) for x in chosen]
        out.append(embed_rows(run.model.whisper, run.base, sounds, **settings)[1][:, -1, 0])
    return np.concatenate(out)


def check(args: argparse.Namespace) -> None:
    """Raises ValueError for options that do not go together, and for an output folder with something in it."""
    if args.dtype == "int8" and args.format != "ctranslate2":
        raise ValueError(f"--dtype=int8 is for --format=ctranslate2; --format={args.format} takes float32 or float16.")
    if (target := args.output_dir).exists():
        found = sorted(p.name for p in target.iterdir())[:5] if target.is_dir() else ["a file"]
        if found:
            raise ValueError(f"--output_dir={target}: found {', '.join(found)}, expected no folder or an empty one.")


def run(args: argparse.Namespace) -> str:
    """Exports; returns what was, in a line.

    Raises:
      ValueError: options, or a run without what they name.
      ModuleNotFoundError: a package that the format needs is not installed.
    """
    check(args)
    if args.format == "ctranslate2":
        from jaxmoe.model.load.ctranslate2 import check_converter

        check_converter()
    import jax

    from jaxmoe.system import personal_folder, read_run

    with jax.default_matmul_precision("highest"):  # weights are made here: a TPU would multiply in bfloat16
        personal = bool(args.speaker) and personal_folder(args.checkpoint, args.speaker).is_dir()
        if args.speaker and not personal and args.gates is not None:
            raise ValueError(
                f"--speaker={args.speaker}: the run is not adapted to this speaker, and with --gates={args.gates} "
                "nothing of theirs is left to use; run --phase=personalize, or leave one of the two out."
            )
        trained = read_run(args.checkpoint, args.speaker if personal else "", args.system)
        if not trained.model.num_experts and (args.gates is not None or args.speaker):
            given = f"--speaker={args.speaker}" if args.speaker else f"--gates={args.gates}"
            raise ValueError(f"{given} is for a mixture, and {trained.name} is one LoRA without a gate; leave it out.")
        if args.format == "peft" and trained.own_encoder:
            raise ValueError(
                f"--format=peft: the encoder of {trained.name} is adapted too, in biases and norms, which are no LoRA; "
                "take --format=hf, or the mixture behind Whisper's own encoder, --system=moe."
            )
        fixed = fix(trained, args.checkpoint, args.gates, args.speaker)
        return write(args, trained, fixed)


def write(args: argparse.Namespace, trained: "Run", fixed: Fixed) -> str:
    """Fills the output folder, whole or not at all."""
    from jaxmoe.report.model_card import export_card

    said = fixed.what + (f"; {fixed.cost}" if fixed.cost else "")
    target: Path = args.output_dir
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.mkdir()
        fill(part, args, trained, fixed)
        card = export_card(args.checkpoint, trained.settings, args.format, said, fixed.gates[0])
        (part / "README.md").write_text(card, "utf-8")
        for file in part.iterdir():  # safetensors lets nobody else read what it writes
            shutil.copymode(part / "README.md", file)
        if target.exists():
            target.rmdir()  # empty, as checked
        os.replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return said


def fill(folder: Path, args: argparse.Namespace, trained: "Run", fixed: Fixed) -> None:
    """Writes the files of the format."""
    import jax.numpy as jnp
    import numpy as np

    from jaxmoe.model import lora
    from jaxmoe.model.load.ctranslate2 import convert
    from jaxmoe.model.load.hf import save_hf
    from jaxmoe.model.load.peft import save_peft
    from jaxmoe.weight_sources import hub_name

    columns = lora.stack(trained.params["shared"], trained.params["experts"])
    row = trained.model.scales(jnp.asarray(fixed.gates))[0]
    if args.format == "peft":
        save_peft(folder, columns, np.asarray(row), hub_name(trained.settings["model"]["backbone"]), args.dtype)
        return
    params, tokenizer = lora.merge(trained.base, columns, row), trained.tokenizer
    spoken = {"language": "en", "task": "transcribe"} if tokenizer.is_multilingual else {}
    if args.format == "hf":
        save_hf(folder, trained.model.dims, params, tokenizer, args.dtype, spoken)
        return
    with tempfile.TemporaryDirectory(dir=folder.parent) as whole:
        save_hf(whole, trained.model.dims, params, tokenizer, generation=spoken)
        convert(Path(whole), folder, args.dtype)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    args = parser().parse_args(argv)
    try:
        said = run(args)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.output_dir}: {said}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
