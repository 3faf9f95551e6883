"""The model cards of a run and of what is exported of it, in Hugging Face's format: README.md.

Source of the format: huggingface.co/docs/hub/model-cards (YAML front matter with model-index; its headings).
"""

from collections.abc import Sequence
import json
from pathlib import Path
from typing import Any

import jaxmoe
from jaxmoe.data import prepared
from jaxmoe.report import summary
from jaxmoe.report.read import read_json
from jaxmoe.weight_sources import hub_name

LIMITS = """- Not a medical device. Transcripts and translations contain errors; no medical decision may rest on them.
- {languages}; other languages were neither trained nor measured.
- Speech of people and disorders that the evaluation does not hold may be recognised far worse than the figures say."""


def model_card(metrics: dict[str, Any], workdir: Path) -> str:
    """The card as Markdown: what was trained on what, how well it works, for whom it does not."""
    path = workdir / "config.json"
    config = read_json(path)["config"] if path.is_file() else {}
    corpus = metrics["corpus"]
    share = corpus["simulated_utterances"] / max(corpus["utterances"], 1)
    kind = "simulated" if share == 1 else "recorded" if share == 0 else f"{100 * share:.0f} % simulated"
    backbone = config.get("model", {}).get("backbone", "Whisper")
    data = config.get("data", {}).get("corpus", "unknown")
    name = f"{metrics['run']['workdir']}: Whisper {backbone} with LoRA experts for disordered speech"
    parts = [
        _front_matter(metrics, name, backbone, data),
        f"# {name}",
        "Recognises English speech of people with a speech disorder; a translator makes German of the transcript."
        f" LoRA adapters on a frozen Whisper {backbone}, mixed for each utterance by a gate. Made by jaxmoe.",
        f"## Training and evaluation data\n\nCorpus `{data}`, **{kind} speech**. Evaluated on {corpus['utterances']}"
        f" utterances ({corpus['hours']:.2f} h) of {corpus['speakers']} speakers held out from training."
        + _groups(metrics),
        "## Intended use\n\nResearch on, and drafts of, transcripts of disordered speech, read by somebody who can hear"
        " the recording.",
        f"## Limits\n\n{_limits(share, 'English in, German out')}",
        "## Results\n\n" + _results(metrics),
        "## What was found\n\n" + "\n".join(f"- {sentence}" for sentence in summary.sentences(metrics)),
        "## Conventions\n\n" + "\n".join(f"- {key}: {text}" for key, text in metrics["conventions"].items()),
        "## Reproduction\n\n" + _reproduction(metrics),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(metrics: dict[str, Any], name: str, backbone: str, data: str) -> str:
    """YAML between lines of dashes; strings are written as JSON, which YAML reads."""
    focus = summary.by_key(metrics)[metrics["focus"]]
    lines = ["---", "language: [en, de]", "library_name: jaxmoe", "pipeline_tag: automatic-speech-recognition"]
    lines += [f"base_model: {json.dumps(hub_name(backbone))}", "tags: [whisper, lora, dysarthria]"]
    lines += ["model-index:", f"- name: {json.dumps(name)}", "  results:"]
    for metric, task in (("wer", "automatic-speech-recognition"), ("bleu", "translation")):
        if focus[metric] is not None:
            lines += ["  - task:", f"      type: {task}", "    dataset:", f"      name: {json.dumps(data)}"]
            lines += [f"      type: {json.dumps(data)}", "    metrics:", f"    - type: {metric}"]
            lines += [f"      value: {focus[metric]:.2f}"]
    return "\n".join([*lines, "---"])


def _limits(share: float, languages: str) -> str:
    """share: of the utterances, those that are simulated."""
    simulated = (
        "- **Simulated speech**: the disorders, and perhaps the voices, were made by signal processing. No figure here"
        " says anything about real patients.\n"
    )
    return (simulated if share else "") + LIMITS.format(languages=languages)


def _groups(metrics: dict[str, Any]) -> str:
    focus = summary.by_key(metrics)[metrics["focus"]]
    groups = focus["by"].get("etiology", {})
    if not groups:
        return ""
    return " By etiology: " + ", ".join(f"{summary.label(g)} {f['utterances']}" for g, f in groups.items()) + "."


def _results(metrics: dict[str, Any]) -> str:
    rows = ["| system | WER | 95 % | BLEU | 95 % |", "|---|---|---|---|---|"]
    for system in metrics["systems"]:
        if system["status"] == "run":
            cells = [system["name"]]
            for metric in ("wer", "bleu"):
                ci = system["ci95"][metric]
                cells += ["" if system[metric] is None else f"{system[metric]:.1f}"]
                cells += [f"{ci[0]:.1f} to {ci[1]:.1f}" if ci else ""]
        else:
            cells = [system["name"], system["status"], "", "", ""]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    notes = {s["note"]: s["name"] for s in metrics["systems"] if s["note"]}
    return "\n".join(rows) + "".join(f"\n\n{name}: {note}" for note, name in notes.items())


def _reproduction(metrics: dict[str, Any]) -> str:
    run = metrics["run"]
    versions = ", ".join(f"{name} {version}" for name, version in metrics["versions"].items())
    commit = run["git_commit"] or "unknown"
    return f"Configuration: `config.json`. Commit: {commit}. Device: {run['device']}. {versions}."


FOR = {"hf": "transformers", "peft": "peft", "ctranslate2": "ctranslate2"}  # format of an export: its library


def export_card(
    workdir: Path, settings: dict[str, Any], format_: str, said: str, gates: Sequence[float]
) -> str:
    """The card of what jaxmoe.export writes. settings: of what was trained (system.Run); said: what was exported and
    what is given up by it."""
    path = workdir / "config.json"
    commit = read_json(path).get("git_commit") if path.exists() else None
    backbone, embed = settings["model"]["backbone"], settings["embed"]
    rows = [row for split in prepared.splits(workdir) for row in prepared.open_metadata(workdir, split)]
    share = sum(row["simulated"] for row in rows) / max(len(rows), 1)
    heard = "padded to 30 s, as other programs pad them"
    if embed["context"] == "trimmed":
        heard = f"with {embed['margin_s']:g} s of silence after them: in other programs' windows of 30 s it errs more"
    shown = f" Gates: {', '.join(f'{g:.3f}' for g in gates)}." if len(gates) else ""
    front = ["---", "language: [en]", f"library_name: {FOR[format_]}", "pipeline_tag: automatic-speech-recognition"]
    front += [f"base_model: {json.dumps(hub_name(backbone))}", "tags: [whisper, dysarthria]", "---"]
    parts = [
        "\n".join(front),
        f"# Whisper {Path(backbone).name} adapted to disordered speech, for {FOR[format_]}",
        f"{'Adapters over' if format_ == 'peft' else 'Merged into'} {hub_name(backbone)}: {said}.{shown}",
        f"Trained without timestamps on the corpus `{settings['data']['corpus']}`, recordings {heard}. Give it speech"
        " only: where there is none it invents sentences.",
        f"## Limits\n\n{_limits(share, 'English')}",
        f"Made by jaxmoe {jaxmoe.__version__} from a run of commit {commit or 'unknown'}.",
    ]
    return "\n\n".join(parts) + "\n"
