"""Runs one phase of an experiment, or all that are missing.

  python -m jaxmoe.launch --phase=PHASE --config=configs/NAME.py[:VARIANT] [--workdir=DIR] [--config.a.b=VALUE ...]

PHASE is one of
  prepare    recordings -> WORKDIR/corpus, what cannot be used set aside with its reason
  references German for utterances without, by the translator config.references.engine
  customize  glossary, translation memory and style for DeepL, from the train split
  embed      the frozen encoder over every recording, once
  cluster    HDBSCAN over speakers, by how they speak
  gate       the gate learns the clusters
  experts    one LoRA expert a cluster, the gate frozen
  joint      gate, experts and shared path together
  encoder    the encoder adapted to everybody, from the audio
  personalize  the mixture adapted to each held-out speaker from a few recordings (config.personalize.shots > 0)
  baseline   one LoRA for everybody
  mt         fine-tunes the local translator (config.mt_tuning.steps > 0)
  cascade    the mixture with the translator in the loop, or distilled to German (config.cascade.steps > 0)
  salmonn    a language model that hears: connector and LoRA (config.salmonn.steps)
  evaluate   every system of the table on the evaluation split, with German
  stress     the same under noise, on silence, and on other people's recordings
  report     metrics.json and a page for people
  all        what is missing of these, in order

Any field of the configuration can be given as --config.group.field=VALUE. Phases can be killed and continued; a phase
whose configuration changed starts again, and what it had made is moved aside.
"""

import difflib
import importlib.metadata
import json
from pathlib import Path
import platform
import subprocess
import sys

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

import jaxmoe
from jaxmoe import mt, stages

CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment: configs/NAME.py or configs/NAME.py:VARIANT.")
PHASE = flags.DEFINE_enum("phase", "all", [*stages.PHASES, "all"], "What to run.")
WORKDIR = flags.DEFINE_string("workdir", None, "Files of the run; checkpoints/<config name> if not given.")
FORCE = flags.DEFINE_bool("force", False, "Run the phase again although it is done.")


def default_workdir(path: str) -> Path:
    """configs/quickstart.py -> checkpoints/quickstart; a variant is appended."""
    file, _, variant = path.partition(":")
    return Path("checkpoints") / (Path(file).stem + (f"-{variant}" if variant else ""))


def write_config(config: ConfigDict, workdir: Path) -> None:
    """WORKDIR/config.json: the resolved configuration, versions, git commit, device."""
    import jax

    git = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    names = ("jax", "flax", "optax", "orbax-checkpoint", "hdbscan", "umap-learn", "numpy", "sacrebleu", "jiwer")
    record = {
        "config": config.to_dict(),
        "versions": {"jaxmoe": jaxmoe.__version__, "python": platform.python_version()}
        | {n: importlib.metadata.version(n) for n in names},
        "git_commit": git.stdout.strip() or None,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(record, indent=2, default=str))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; options are --name=value.")
    if CONFIG.value is None:
        raise app.UsageError("--config is needed, e.g. --config=configs/quickstart.py")
    logging.set_verbosity(logging.WARNING)  # Orbax logs every file at INFO
    from jaxmoe.compilation import enable_cache
    from jaxmoe.memory import reuse_memory

    enable_cache()
    reuse_memory()
    path = config_flags.get_config_filename(flags.FLAGS["config"])
    workdir = Path(WORKDIR.value) if WORKDIR.value else default_workdir(path)
    try:
        stages.check(CONFIG.value, workdir, PHASE.value)
        write_config(CONFIG.value, workdir)
        if PHASE.value == "all":
            stages.run_all(CONFIG.value, workdir, FORCE.value)
        else:
            stages.run(CONFIG.value, workdir, PHASE.value, FORCE.value)
    except (ValueError, FileNotFoundError, FloatingPointError, mt.BudgetExceeded, mt.RequestError) as error:
        sys.exit(f"error: {error}")


def parse(argv: list[str]) -> list[str]:
    """Flags of the command line; a misspelt configuration field ends with what was probably meant."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:
        field = str(error).strip("\"'").split('"')
        sys.exit(f"error: {' '.join(str(error).split())}" if len(field) < 2 else f"error: {suggest(argv, error)}")


def suggest(argv: list[str], error: Exception) -> str:
    """The configuration fields nearest to the ones given that do not exist."""
    given = [a.lstrip("-").split("=")[0] for a in argv if a.lstrip("-").startswith("config.")]
    path = next((a.split("=", 1)[1] for a in argv if a.lstrip("-").startswith("config=")), None)
    if path is None:
        return str(error)
    known = fields(load_config(path))
    wrong = [g for g in given if g not in known]
    near = lambda name: " or ".join(difflib.get_close_matches(name, known, 2)) or "another"
    return " ".join(f"{w} does not exist; did you mean {near(w)}?" for w in wrong) or str(error)


def load_config(path: str) -> ConfigDict:
    """The configuration of "file.py" or "file.py:variant", as --config reads it."""
    import runpy

    file, _, variant = path.partition(":")
    get_config = runpy.run_path(file)["get_config"]
    return get_config(variant) if variant else get_config()


def fields(config: ConfigDict, prefix: str = "config") -> list[str]:
    """Every field as it is given on the command line."""
    out = []
    for key, value in config.items():
        name = f"{prefix}.{key}"
        out += fields(value, name) if isinstance(value, ConfigDict) else [name]
    return out


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
