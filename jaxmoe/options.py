"""What commands share: their parser; of transcribe and serve, options of recognition and translation, and what these
make.

Start-up counts here: JAX and all that needs it are imported where something is made.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from jaxmoe.mt import Translator
    from jaxmoe.system import Recogniser
    from jaxmoe.windows import TranscribeOptions

SYSTEMS = ("moe-encoder", "moe", "lora", "moe-risk")  # rows of the report that a run can hear as
MT_MODEL = "qwen2.5-coder-1.5b-instruct"


def command(name: str, description: str | None, epilog: str = "") -> argparse.ArgumentParser:
    """The parser of `python -m jaxmoe.<name>`; its texts are shown as they are written."""
    layout = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(
        prog=f"python -m jaxmoe.{name}", description=description, epilog=epilog, formatter_class=layout
    )


class Group(Protocol):
    """A parser, or a group of its options."""

    def add_argument(self, *names: str, **settings: Any) -> Any: ...


def add_recognition(group: Group) -> None:
    """Options of the recogniser and its search."""

    def add(name: str, kind: Any, default: Any, text: str, metavar: str = "X") -> None:
        shown = f"{text} (default: {default})" if default not in (None, "") else text
        group.add_argument(name, type=kind, default=default, help=shown, metavar=metavar)

    named = "a Whisper: tiny.en, base, ..., large-v3, a folder or a hub id (default: the checkpoint's, else tiny.en)"
    add("--model", str, None, named, "NAME")
    add("--checkpoint", Path, None, "a run's workdir: use its adapters", "DIR")
    add_system(group)
    add("--speaker", str, "", "of the run: somebody it was adapted to by --phase=personalize", "ID")
    add("--language", str, "en", "spoken, for multilingual models", "CODE")
    add("--batch_size", positive, 8, "recordings, or parts of one, worked on at a time", "N")
    add("--beam_size", positive, 5, "width of the search; 1 is greedy", "N")
    add("--best_of", positive, 5, "samples drawn where the search has failed", "N")
    add("--temperature", float, 0.0, "of the first attempt", "T")
    add("--temperature_increment_on_fallback", float, 0.2, "added for the next attempt, up to 1; 0: no other", "T")
    add("--compression_ratio_threshold", float, 2.4, "a text more repetitive has failed")
    add("--logprob_threshold", float, -1.0, "a text less likely (mean log-probability of a token) has failed")
    add("--no_speech_threshold", float, 0.6, "probability of silence above which text is flagged no_speech")
    add("--withhold_threshold", float, 0.85, "the same above which a checkpoint's text is in the JSON only; 1: never")
    group.add_argument(
        "--cut_at_pauses",
        action="store_true",
        help="cut recordings of over 30 s where they are quietest and work on all parts at once: faster",
    )
    group.add_argument(
        "--without_timestamps",
        action="store_true",
        help="one segment for 30 s, or for a part of --cut_at_pauses: nothing is heard twice, which is faster still, "
        "but more words are wrong and subtitles are long",
    )
    group.add_argument(
        "--bfloat16",
        action="store_true",
        help="multiply matrices in bfloat16 on a CPU too, as on GPUs and TPUs: faster where it has AVX512-BF16 or AMX, "
        "slower elsewhere; a few words change",
    )
    group.add_argument(
        "--skip_padding",
        action="store_true",
        help="approximate the silence that fills short recordings up to 30 s, and compute it only for texts that come "
        "out doubtful: a bare Whisper is up to three times as fast, some texts change; a --checkpoint has a context of "
        "its own",
    )
    group.add_argument(
        "--condition_on_previous_text",
        action="store_true",
        help="prompt each 30 s with the text before; off because loops, common in disordered speech, would spread",
    )


def add_system(group: Group) -> None:
    """The option that chooses among what a run has trained."""
    which = "of the run, as in its report's rows (default: the mixture, with its adapted encoder where it has one)"
    group.add_argument("--system", choices=SYSTEMS, default="", help=which)


def add_translation(group: Group, text: str) -> None:
    """Options of the translator; text: what --translate_to does."""
    add = group.add_argument
    add("--translate_to", choices=("de",), help=text)
    sent = "local runs here; deepl sends the texts to DeepL, its key in DEEPL_AUTH_KEY (default: %(default)s)"
    add("--mt", choices=("local", "deepl"), default="local", help=sent)
    consent = "you may let what is said in the recordings leave this machine; --mt=deepl asks for it"
    add("--acknowledge_privacy", action="store_true", help=consent)
    which = f"the local translator (default: the checkpoint's, as its phase mt tuned it, else {MT_MODEL})"
    add("--mt_model", metavar="NAME", help=which)


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number of at least 1")
    return int(text)


def temperatures(first: float, increment: float) -> tuple[float, ...]:
    """The temperatures to try: first, first + increment, ... up to 1."""
    if increment <= 0:
        return (first,)
    return tuple(round(first + i * increment, 6) for i in range(int((1.0 - first) / increment + 1e-6) + 1)) or (first,)


def prepare_jax(args: argparse.Namespace) -> None:
    """JAX as a command wants it: compiled programs and memory are kept, products are as wide as asked for."""
    from jaxmoe.compilation import enable_cache
    from jaxmoe.memory import reuse_memory

    enable_cache()
    reuse_memory()
    import jax

    from jaxmoe.model.precision import NARROW

    if args.bfloat16:
        jax.config.update("jax_default_matmul_precision", NARROW)


def make_system(args: argparse.Namespace, speaker: str | None = None) -> "Recogniser":
    """The recogniser; speaker: another than --speaker's.

    Raises:
      ValueError: if there is none of that name, if a model and a run are given, or --language is none of its.
    """
    from jaxmoe import system

    if args.model and args.checkpoint:
        raise ValueError(f"--model={args.model}: --checkpoint={args.checkpoint} brings its own; give one of them.")
    who = args.speaker if speaker is None else speaker
    how = {"system": args.system, "exact": not args.skip_padding}
    made = system.load_system(args.model or "tiny.en", args.checkpoint, who, **how)
    made.tokenizer.sot_sequence(args.language)  # a language the model lacks fails here, before any work
    return made


def transcribe_options(args: argparse.Namespace, **changes: Any) -> "TranscribeOptions":
    """How to transcribe; changes: fields that are not the arguments'."""
    from jaxmoe.windows import TranscribeOptions

    fields = {f.name: getattr(args, f.name) for f in dataclasses.fields(TranscribeOptions) if hasattr(args, f.name)}
    fields["temperatures"] = temperatures(args.temperature, args.temperature_increment_on_fallback)
    return TranscribeOptions(**(fields | changes))


def make_translator(args: argparse.Namespace, cache: Path | None) -> "Translator":
    """The translator, its translations kept in the file `cache` (None: in memory)."""
    from jaxmoe import mt

    model, adapters = _local_model(args)
    consent = args.acknowledge_privacy
    return mt.make(args.mt, model, acknowledge_privacy=consent, cache_path=cache, adapters=adapters)


def _local_model(args: argparse.Namespace) -> tuple[str, Path | None]:
    """The local translator's model and adapters: those of the run, unless --mt_model names another."""
    from jaxmoe.mt.local import ADAPTERS

    record = args.checkpoint and args.checkpoint / "config.json"
    if not record or not record.exists():
        return args.mt_model or MT_MODEL, None
    model = json.loads(record.read_text("utf-8"))["config"]["mt"]["model"]
    if args.mt_model not in (None, model):
        return args.mt_model, None
    adapters = args.checkpoint / "mt" / ADAPTERS
    return model, adapters if adapters.exists() else None
