"""Removes every byte of a speaker from runs, when consent is withdrawn.

  python -m jaxmoe.forget --speaker=ID WORKDIR...

Corpora, latents, clusters, hypotheses and the cache of translations lose what is the speaker's; reports are removed,
to be made again. Files are then searched for what is left. Models cannot forget: those trained on the speaker are
listed, for you to delete or train again. A speaker who is forgotten is not taken in again by --phase=prepare.

The recordings themselves (config.data.path) are yours and are not touched.
"""

from collections.abc import Sequence
import json
from pathlib import Path
import sys

from absl import app, flags

from jaxmoe.data import forgetting, lineage
from jaxmoe.report.data_card import write_card
from jaxmoe.system import personal_folder
from jaxmoe.weights import cache_folder

SPEAKER = flags.DEFINE_string("speaker", None, "The speaker's id, as in the corpus.", required=True)


def forget(workdir: Path, speaker: str) -> list[Path]:
    """Removes a speaker from one run; returns the folders whose models were trained on them.

    Raises:
      ValueError: the run does not know the speaker.
      RuntimeError: something of the speaker is still there.
    """
    traces = forgetting.find_traces(workdir, speaker)
    traces.files |= {personal_folder(workdir, speaker).name, speaker, *traces.ids}
    trained = lineage.trained_on(workdir, speaker)
    if not traces.ids and not trained:
        raise ValueError(f"{workdir}: no speaker {speaker!r}; ids are those of corpus/metadata_<split>.jsonl.")
    lineage.forget(workdir, speaker)  # first: a run that starts meanwhile takes in nothing of theirs
    for line in forgetting.clean(workdir, traces):
        print(line)
    for summary in sorted(workdir.glob("*/summary.json")):
        if summary.with_name("card.html").exists():
            write_card(summary.parent, json.loads(summary.read_text("utf-8")))
    cache = cache_folder() / "translations.sqlite"
    if cache.exists() and forgetting.clean_database(cache, traces):
        print(f"{cache}: rewritten")
    if left := forgetting.leftovers(workdir, traces):
        raise RuntimeError(f"something of speaker {speaker!r} is still in {', '.join(map(str, left))}.")
    return [folder for folder in trained if folder.exists()]


def run(speaker: str, workdirs: Sequence[str]) -> bool:
    """Removes a speaker from each run and says so; whether all went well."""
    failed = False
    for workdir in map(Path, workdirs):
        try:
            if not workdir.is_dir():
                raise ValueError(f"{workdir}: no such folder.")
            trained = forget(workdir, speaker)
        except (ValueError, RuntimeError) as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
            continue
        print(f"{workdir}: forgotten. Models trained on this speaker:" if trained else f"{workdir}: forgotten.")
        for folder in trained:
            print(f"  {folder}")
        if unsaid := lineage.without_lineage(Path(workdir)):
            print(f"Models that do not say whom they have seen: {', '.join(map(str, unsaid))}")
    return not failed


def main(argv: list[str]) -> None:
    if len(argv) < 2:
        raise app.UsageError("name the workdirs: python -m jaxmoe.forget --speaker=ID WORKDIR...")
    sys.exit(not run(SPEAKER.value, argv[1:]))


if __name__ == "__main__":
    app.run(main)
