"""The translators that the systems of an evaluation use."""

from pathlib import Path

from ml_collections import ConfigDict

from jaxmoe import mt
from jaxmoe.eval.systems import Part
from jaxmoe.weights import cache_folder


def configured(config: ConfigDict, workdir: Path, part: Part) -> mt.Translator:
    """The translator of config.mt, behind the cache shared by all runs. Raises: mt.TranslatorUnavailable."""
    del workdir, part
    return _make(config, config.mt.engine)


def local(config: ConfigDict, workdir: Path, part: Part) -> mt.Translator:
    """The local translator, whatever config.mt.engine says. Raises: mt.TranslatorUnavailable."""
    del workdir, part
    return _make(config, "local")


def _make(config: ConfigDict, engine: str) -> mt.Translator:
    return mt.make(**dict(config.mt) | {"engine": engine}, cache_path=cache_folder() / "translations.sqlite")
