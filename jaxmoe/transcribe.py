"""Speech in sound files -> text files, from the command line: python -m jaxmoe.transcribe AUDIO... [options]

Start-up counts here: JAX and all that needs it are imported once the arguments are known to be good.
"""

import argparse
from collections.abc import Callable, Sequence
import dataclasses
import functools
import json
import os
from pathlib import Path
import sys
from typing import TYPE_CHECKING, Any

from jaxmoe import options

if TYPE_CHECKING:
    from jaxmoe.mt import Translator
    from jaxmoe.segments import Transcript

SUFFIXES = frozenset(
    ".wav .flac .mp3 .ogg .oga .opus .m4a .mp4 .aac .aif .aiff .au .caf .wma .webm .mka .mkv .mov .amr .3gp".split()
)
FORMATS = ("txt", "srt", "vtt", "json", "all")
EPILOG = """\
outputs:
  clip.wav gives clip.txt, clip.srt, clip.vtt, clip.json in --output_dir; those of a folder keep their sub-folders.
  With --translate_to=de also clip.de.txt, clip.de.srt, clip.de.vtt; clip.json then holds both languages.
  Inputs that would share an output take their whole names (clip.wav.txt, clip.mp3.txt), and where these are the same
  too, their folders (a/clip.txt, b/clip.txt): no input overwrites another's.
  Each file is written when its recording is done, whole or not at all. An unreadable recording is reported and the
  rest go on; the exit status is then 1. After an interruption, --skip_existing continues.

examples:
  python -m jaxmoe.transcribe clip.wav
  python -m jaxmoe.transcribe recordings/ --model=base --output_dir=out --output_format=json --skip_existing
  python -m jaxmoe.transcribe clip.m4a --translate_to=de --output_format=srt
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    about = "Transcribes English speech, also of people with a speech disorder, and translates it into German."
    p = options.command("transcribe", about, EPILOG)
    _add_files(p.add_argument_group("files"))
    options.add_recognition(p.add_argument_group("recognition"))
    options.add_translation(p.add_argument_group("translation"), "also write a translation")
    return p


def _add_files(group: options.Group) -> None:
    add = group.add_argument
    known = "wav, flac, mp3, ogg, m4a, ..."
    add("audio", nargs="+", metavar="AUDIO", type=Path, help=f"sound files, or folders to search through for {known}")
    add("--output_dir", "-o", metavar="DIR", type=Path, default=Path("."), help="(default: the current folder)")
    add("--output_format", "-f", choices=FORMATS, default="all", help="(default: %(default)s)")
    add("--skip_existing", action="store_true", help="leave out recordings whose outputs are all there")
    add("--quiet", "-q", action="store_true", help="print errors only")


@dataclasses.dataclass(frozen=True)
class Job:
    """An input and where its outputs go, without suffix."""

    audio: Path
    output: Path

    def path(self, suffix: str) -> Path:
        return self.output.with_name(self.output.name + suffix)


def shown(path: Path | str) -> str:
    """A name for people and JSON: bytes that are no UTF-8 become a replacement character."""
    return os.fsencode(path).decode("utf-8", "replace")


def find_inputs(paths: Sequence[Path]) -> list[tuple[Path, Path]]:
    """(file, sub-folder below the given folder) of all inputs; a file that is named twice counts once."""
    found: dict[Path, tuple[Path, Path]] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                print(f"warning: {path}: no sound files in this folder.", file=sys.stderr)
            for file in inside:
                found.setdefault(file.resolve(), (file, file.parent.relative_to(path)))
        else:
            found.setdefault(path.resolve(), (path, Path()))
    return list(found.values())


def suffixes(output_format: str, translate_to: str | None) -> list[str]:
    """Of the files one input gives, such as .txt, .json, .de.txt."""
    formats = FORMATS[:-1] if output_format == "all" else (output_format,)
    own = [f".{name}" for name in formats]
    translated = [f".{translate_to}.{name}" for name in formats if name != "json"] if translate_to else []
    return own + translated


def is_done(job: Job, wanted: Sequence[str], translate_to: str | None) -> bool:
    """Whether all files of an input are there; of JSON, with the translation that a failed translator leaves out."""
    if not all(job.path(suffix).exists() for suffix in wanted):
        return False
    if translate_to is None or ".json" not in wanted:
        return True
    try:
        return translate_to in (json.loads(job.path(".json").read_text("utf-8")).get("translations") or {})
    except ValueError:
        return False


class Output:
    """Writes and shows what is done."""

    def __init__(self, args: argparse.Namespace, model: str, say: Callable[[str], None]) -> None:
        self.formats = FORMATS[:-1] if args.output_format == "all" else (args.output_format,)
        self.target, self.model, self.say = args.translate_to, model, say
        self.translator = _translator(args) if args.translate_to else None

    def write(self, job: Job, transcript: "Transcript", show: bool) -> None:
        """Writes a transcript, then its translation: a translator's failure costs no transcript."""
        from jaxmoe import writers

        original = writers.cues(transcript)
        self._write_texts(job, original, "")
        if "json" in self.formats and not self.translator:
            self._write_json(job, transcript, None)
        if show:
            for cue in original:
                self.say(_line(cue))
        if self.translator:
            try:
                translations = self._translate(self.translator, job, transcript, show)
            except Exception:
                if "json" in self.formats:
                    self._write_json(job, transcript, None)
                raise
            if "json" in self.formats:
                self._write_json(job, transcript, translations)

    def _translate(self, translator: "Translator", job: Job, transcript: "Transcript", show: bool) -> dict[str, Any]:
        from jaxmoe import writers

        cues, rows = writers.translate(translator, transcript)
        self._write_texts(job, cues, f".{self.target}")
        if show:
            for cue in cues:
                self.say(_line(cue))
        return {self.target: rows}

    def _write_texts(self, job: Job, cues: Sequence[Any], infix: str) -> None:
        from jaxmoe import writers

        for name in self.formats:
            if name != "json":
                writers.write_atomically(job.path(f"{infix}.{name}"), writers.WRITERS[name](cues))

    def _write_json(self, job: Job, transcript: "Transcript", translations: dict[str, Any] | None) -> None:
        from jaxmoe import writers

        text = writers.to_json(transcript, audio=shown(job.audio), model=self.model, translations=translations)
        writers.write_atomically(job.path(".json"), text)


def _line(cue: Any) -> str:
    from jaxmoe import writers

    start, end = (writers.timestamp(t, always_hours=False, decimal=".") for t in (cue.start, cue.end))
    return f"[{start} --> {end}] {cue.text}"


def _translator(args: argparse.Namespace) -> "Translator":
    from jaxmoe import weights

    return options.make_translator(args, weights.cache_folder() / "translations.sqlite")


def run(args: argparse.Namespace, jobs: Sequence[Job]) -> int:
    """Transcribes and writes all jobs; returns how many failed."""
    options.prepare_jax(args)
    from tqdm import tqdm

    from jaxmoe.data.audio import load_audio
    from jaxmoe.transcription import transcribe

    system, how = options.make_system(args), options.transcribe_options(args)
    say = lambda text: args.quiet or tqdm.write(text, file=sys.stdout)
    complain = functools.partial(tqdm.write, file=sys.stderr)
    output = Output(args, system.name, say)
    failed = 0
    layout = "{percentage:3.0f}%|{bar}| {n:.1f}/{total} recordings [{elapsed}<{remaining}]"
    with tqdm(total=len(jobs), bar_format=layout, disable=True if args.quiet else None) as bar:
        done = [0.0] * len(jobs)
        for step in transcribe(system, [functools.partial(load_audio, job.audio) for job in jobs], how):
            job, error = jobs[step.index], step.error
            if step.transcript is not None:
                try:
                    if len(jobs) > 1:
                        say(f"{shown(job.audio)}:")
                    output.write(job, step.transcript, show=not args.quiet)
                except (OSError, ValueError, RuntimeError) as e:
                    error = e
            ended = step.transcript is not None or error is not None
            share = 1.0 if ended else step.done / step.total
            bar.update(share - done[step.index])
            done[step.index] = share
            if error is not None:
                failed += 1
                about = "" if str(job.audio) in str(error) else f"{job.audio}: "
                complain(shown(f"error: {about}{error}"))
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0, 1 if a recording failed, 130 if interrupted."""
    args = parser().parse_args(argv)
    wanted = suffixes(args.output_format, args.translate_to)
    from jaxmoe import writers

    inputs = find_inputs(args.audio)
    stems = writers.output_stems(inputs, wanted)
    jobs = [Job(path, args.output_dir / stem) for (path, _), stem in zip(inputs, stems, strict=True)]
    todo = [j for j in jobs if not (args.skip_existing and is_done(j, wanted, args.translate_to))]
    if len(todo) < len(jobs) and not args.quiet:
        print(f"{len(jobs) - len(todo)} of {len(jobs)} recordings are done already.", file=sys.stderr)
    if not todo:
        return 0 if jobs else 1
    try:
        failed = run(args, todo)
    except KeyboardInterrupt:
        print("interrupted; finished recordings are written, --skip_existing continues.", file=sys.stderr)
        return 130
    except (ValueError, ModuleNotFoundError) as error:  # weights, options: nothing was transcribed
        print(f"error: {error}", file=sys.stderr)
        return 1
    if failed:
        print(f"{failed} of {len(todo)} recordings failed.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
