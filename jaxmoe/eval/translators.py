"""The translators that the systems of an evaluation use."""

from pathlib import Path

from ml_collections import ConfigDict

from jaxmoe import mt
from jaxmoe.eval.systems import NotRun, Part
from jaxmoe.mt import assets
from jaxmoe.mt.local import ADAPTERS
from jaxmoe.weights import cache_folder


def configured(config: ConfigDict, workdir: Path, part: Part) -> mt.Translator:
    """The translator of config.mt, behind the cache shared by all runs. Raises: mt.TranslatorUnavailable."""
    del workdir, part
    return _make(config, config.mt.engine)


def local(config: ConfigDict, workdir: Path, part: Part) -> mt.Translator:
    """The local translator, whatever config.mt.engine says. Raises: mt.TranslatorUnavailable."""
    del workdir, part
    return _make(config, "local")


def customised(config: ConfigDict, workdir: Path, part: Part) -> mt.Translator:
    """DeepL with what phase `customize` made of the train split, or the fine-tuned local translator. Raises: NotRun."""
    if config.mt.engine == "local":
        if not (workdir / "mt" / ADAPTERS).exists():
            raise NotRun("--phase=mt has not been run; config.mt_tuning.steps turns it on")
        return tuned(config, workdir, part)
    if config.mt.engine != "deepl":
        raise NotRun(f"config.mt.engine is {config.mt.engine!r}; there is nothing to customise")
    fields = dict(config.mt) | {"cache_path": cache_folder() / "translations.sqlite"}
    try:
        return assets.customised(workdir, memory_threshold=config.custom.memory_threshold, **fields)
    except mt.TranslatorUnavailable as reason:  # without it the row would be another row
        raise NotRun(str(reason)) from None


def tuned(config: ConfigDict, workdir: Path, part: Part) -> mt.Translator:
    """The local translator with the adapters of phase `mt`. Raises: NotRun."""
    del part
    try:
        return _make(config, "local", workdir / "mt" / ADAPTERS)
    except mt.TranslatorUnavailable as reason:  # without it the row would be another row
        raise NotRun(str(reason)) from None


def _make(config: ConfigDict, engine: str, adapters: Path | None = None) -> mt.Translator:
    fields = dict(config.mt) | {"engine": engine, "adapters": adapters}
    return mt.make(**fields, cache_path=cache_folder() / "translations.sqlite")
