"""Translation on this machine: a model in Flax, as it is or with adapters that phase `mt` trained.

Low quality beside a translation service: see the figures in the documentation. Not for medical use.
"""

from collections.abc import Sequence
import hashlib
import json
from pathlib import Path
import re

import jax.numpy as jnp
import numpy as np

from jaxmoe import weights
from jaxmoe.model import lora
from jaxmoe.model.load.hf_llm import KINDS
from jaxmoe.mt import Translation, TranslatorUnavailable
from jaxmoe.mt.chat import ChatModel
from jaxmoe.mt.marian import MarianModel

# Prompts are padded to one of these lengths, a batch to _FEW rows or to batch_size: few compilations.
_LENGTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048)
_FEW = 4
SENTENCE_END = re.compile(r"[.!?…][\"')\]”’]*\s+(?=\S)")
ADAPTERS = "adapters.safetensors"  # in the folder of phase `mt`


class LocalTranslator:
    """Engine of a local model; the weights are read when the first text comes."""

    billed = False

    def __init__(self, model: str, batch_size: int = 32, adapters: Path | None = None) -> None:
        """model: a name of jaxmoe.weights (fetched if need be), or the path of a .gguf file or Hugging Face folder.

        adapters: a file that phase `mt` made for this model.
        Raises:
            TranslatorUnavailable: the weights are not to be had.
            ValueError: the adapters are of another model.
        """
        if batch_size < 1:
            raise ValueError(f"config.mt.batch_size={batch_size}; expected at least 1.")
        path = find(model)
        self.model, self.batch_size = Path(model).stem if Path(model).exists() else model, batch_size
        self.network = open_network(path)
        self.name = f"local MT ({self.model})"
        base = digest(path)
        self.signature = f"local:{self.model}:{base[:16]}:prompt={self.network.prompt}:{self.network.search}"
        self._columns: lora.Columns = {}
        self._scales = jnp.zeros(0)
        if adapters is not None:
            self._columns, self._scales = lora.load(adapters, base)
            self.name = f"fine-tuned {self.name}"
            self.signature += f":adapters={digest(adapters)[:16]}"
        self._loaded = False

    def plan(self, texts: Sequence[str]) -> list[list[str]]:
        """Batches of texts of about the same length, the longest first, so that memory runs out at once or never."""
        order = sorted(texts, key=lambda text: -len(self.network.source(text)))
        return [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]

    def run(self, batch: Sequence[str]) -> list[Translation]:
        """Translation of at most batch_size texts; one that is longer than the model takes is translated in parts."""
        if not self._loaded:
            self.network.load(self._columns, self._scales)
            self._loaded = True
        texts = [self._parts(text) for text in batch]
        parts = [part for text in texts for part in text]
        starts = range(0, len(parts), self.batch_size)
        said = iter([x for at in starts for x in self._translate(parts[at : at + self.batch_size])])
        return [Translation(" ".join(next(said) for _ in text), self.model) for text in texts]

    def _parts(self, text: str) -> list[str]:
        """The text, in halves of halves until each fits, cut at the end of a sentence or else between words.

        Raises:
            ValueError: nothing fits beside the prompt.
        """
        text, most = text.strip(), self.network.longest
        if len(self.network.source(text)) <= most:
            return [text]
        if len(text) < 2:
            raise ValueError(f"{self.name}: the prompt alone takes more than the {most} tokens that fit; take another.")
        middle = len(text) / 2
        ends = [m.end() for m in SENTENCE_END.finditer(text)] or [m.end() for m in re.finditer(r"\s+", text)]
        cut = min(ends or [int(middle)], key=lambda end: abs(end - middle))
        return [*self._parts(text[:cut]), *self._parts(text[cut:])]

    def _translate(self, batch: Sequence[str]) -> list[str]:
        sources = [self.network.source(text) for text in batch]
        longest, most = max(map(len, sources)), self.network.longest
        length = min(most, next(n for n in _LENGTHS if n >= longest))
        rows = self.batch_size if len(batch) > _FEW else min(_FEW, self.batch_size)
        tokens, mask = np.zeros((rows, length), np.int32), np.zeros((rows, length), bool)
        limit = np.zeros(rows, np.int32)
        for row, source in enumerate(sources):
            tokens[row, length - len(source) :], mask[row, length - len(source) :] = source, True
            limit[row] = self.network.limit(source)
        return list(self.network.translate(tokens, mask, limit, batch))


def find(model: str) -> Path:
    """The .gguf file or Hugging Face folder of a local path or a name of jaxmoe.weights.

    Raises:
        TranslatorUnavailable: the weights are not to be had.
        ValueError: a folder with no model or several in it.
    """
    try:
        path = weights.resolve(model)
    except weights.WeightsError as error:
        raise TranslatorUnavailable(f"the weights of config.mt.model={model!r} are not at hand: {error}") from error
    if path.is_file():
        return path
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    if not files and (path / "config.json").exists():
        return path
    raise ValueError(
        f"{path} holds {[file.name for file in files] or 'no .gguf file and no config.json'}; expected one .gguf "
        "file or a Hugging Face folder. Name the file itself."
    )


def digest(path: Path) -> str:
    """SHA-256 of the weights, as jaxmoe.weights noted it or computed here."""
    marker = path.parent / weights.MARKER
    if path.is_file() and marker.exists():
        noted = json.loads(marker.read_text("utf-8")).get(path.name, {})
        if noted.get("size") == path.stat().st_size:
            return noted["sha256"]
    whole = hashlib.sha256()
    kinds = ("*.safetensors", "*.bin", "*.json", "*.spm")
    for file in [path] if path.is_file() else sorted(file for kind in kinds for file in path.glob(kind)):
        with open(file, "rb") as f:
            whole.update(hashlib.file_digest(f, "sha256").digest())
    return whole.hexdigest()


def open_network(path: Path) -> ChatModel | MarianModel:
    """The model of a file or folder, its weights not read yet.

    Raises:
        ValueError: a folder of an architecture that there is none for.
    """
    if path.is_file():
        return ChatModel(path)
    kind = json.loads((path / "config.json").read_text("utf-8")).get("model_type")
    if kind not in (*KINDS, "marian"):
        raise ValueError(f"{path}: model_type is {kind!r}; the local translator runs marian, {', '.join(KINDS)}.")
    return MarianModel(path) if kind == "marian" else ChatModel(path)
