"""Translation on this machine: a small instruction-tuned language model (Qwen2) in Flax, asked with a few examples.

Low quality beside a translation service: see the figures in the documentation. Not for medical use.
"""

from collections.abc import Sequence
import hashlib
import json
from pathlib import Path
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoe import weights
from jaxmoe.model import llm
from jaxmoe.mt import Translation, TranslatorUnavailable

if TYPE_CHECKING:
    from tokenizers import Tokenizer

INSTRUCTION = "You translate English into German. Answer with the translation only."
# Written for this project; none occurs, nearly or exactly, in the demo corpus. Their keys and values are computed once,
# so that ten cost hardly more than three.
SHOTS = (
    ("The shop around the corner sells fresh bread.", "Der Laden um die Ecke verkauft frisches Brot."),
    ("Her brother moved to the coast two years ago.", "Ihr Bruder ist vor zwei Jahren an die Küste gezogen."),
    ("Why did the machine stop working?", "Warum hat die Maschine aufgehört zu arbeiten?"),
    ("Remind me to water the plants on Thursday.", "Erinnere mich daran, am Donnerstag die Pflanzen zu gießen."),
    ("Could you bring me the blue blanket?", "Könnten Sie mir die blaue Decke bringen?"),
    (
        "The government has announced new rules for hospitals.",
        "Die Regierung hat neue Regeln für Krankenhäuser angekündigt.",
    ),
    ("My knee has been hurting since the fall.", "Mein Knie tut seit dem Sturz weh."),
    ("They say it will snow again next week.", "Es heißt, dass es nächste Woche wieder schneit."),
    ("An old fisherman lived alone at the edge of the forest.", "Ein alter Fischer lebte allein am Rand des Waldes."),
    ("Play the radio a little louder.", "Mach das Radio ein bisschen lauter."),
)
_TURN = "<|im_start|>{role}\n{text}<|im_end|>\n"  # ChatML, the format of Qwen's chat models
BEFORE = (
    _TURN.format(role="system", text=INSTRUCTION)
    + "".join(
        _TURN.format(role="user", text=english) + _TURN.format(role="assistant", text=german)
        for english, german in SHOTS
    )
    + "<|im_start|>user\n"
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n"
STOPS = ("<|im_end|>", "<|im_start|>", "<|endoftext|>")

# Prompts are padded to one of these lengths, a batch to _FEW rows or to batch_size: few compilations.
_LENGTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048)
_FEW = 4
_QUOTES = ('""', "„“", "“”", "«»", "»«", "''", "‚‘")


class _Loaded(NamedTuple):
    model: llm.LanguageModel
    params: Any
    prefix: llm.Cache
    stop: jax.Array


class LocalTranslator:
    """Engine of a local language model; the weights are read when the first text comes."""

    billed = False

    def __init__(self, model: str, batch_size: int = 32) -> None:
        """model: a name of jaxmoe.weights (fetched if need be), or the path of a .gguf file or Hugging Face folder.

        Raises:
            TranslatorUnavailable: the weights are not to be had.
        """
        if batch_size < 1:
            raise ValueError(f"config.mt.batch_size={batch_size}; expected at least 1.")
        try:
            self._path = _weights_path(weights.resolve(model))
        except weights.WeightsError as error:
            raise TranslatorUnavailable(f"the weights of config.mt.model={model!r} are not at hand: {error}") from error
        self.model, self.batch_size = Path(model).stem if Path(model).exists() else model, batch_size
        self.name = f"local MT ({self.model})"
        prompt = hashlib.sha256((BEFORE + "\0" + AFTER).encode()).hexdigest()[:12]
        self.signature = f"local:{self.model}:{_digest(self._path)[:16]}:prompt={prompt}:greedy"
        self._tokenizer: Tokenizer | None = None
        self._loaded: _Loaded | None = None

    def plan(self, texts: Sequence[str]) -> list[list[str]]:
        """Batches of texts of about the same length, the longest first, so that memory runs out at once or never."""
        order = sorted(texts, key=lambda text: -len(self._source(text)))
        return [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]

    def run(self, batch: Sequence[str]) -> list[Translation]:
        """Greedy translation, at most twice the source's tokens and ten: a repetition ends there.

        Raises:
            ValueError: a text longer than the longest prompt.
        """
        if self._loaded is None:
            self._loaded = self._load()
        loaded = self._loaded
        prompts = [self._source(text) + self._after for text in batch]
        longest = max(map(len, prompts))
        if longest > _LENGTHS[-1]:
            text = max(batch, key=len)
            raise ValueError(
                f"A text of {len(text)} characters makes a prompt of {longest} tokens; at most {_LENGTHS[-1]} fit. "
                f"Split it into sentences: {text[:60]!r}..."
            )
        length = next(n for n in _LENGTHS if n >= longest)
        rows = self.batch_size if len(batch) > _FEW else min(_FEW, self.batch_size)
        tokens, mask = np.zeros((rows, length), np.int32), np.zeros((rows, length), bool)
        limit = np.zeros(rows, np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, length - len(prompt) :], mask[row, length - len(prompt) :] = prompt, True
            limit[row] = 2 * (len(prompt) - len(self._after)) + 10
        slots = max(96, 3 * length + 10)  # one program decodes all prompts of up to 28 tokens
        out, number = llm.greedy(
            loaded.model, loaded.params, tokens, mask, limit, loaded.stop, loaded.prefix, slots=slots
        )
        lines = [ids[:n].tolist() for ids, n in zip(np.asarray(out), np.asarray(number), strict=True)]
        return [
            Translation(clean(self.tokenizer.decode(ids), text), self.model)
            for ids, text in zip(lines, batch, strict=False)
        ]

    @property
    def tokenizer(self) -> "Tokenizer":
        """The model's tokenizer; it reads control tokens inside a text as text."""
        if self._tokenizer is None:
            self._tokenizer = _read_tokenizer(self._path)
            self._before = self._tokenizer.encode(BEFORE).ids
            self._after = self._tokenizer.encode(AFTER).ids
            self._tokenizer.encode_special_tokens = True
        return self._tokenizer

    def _source(self, text: str) -> list[int]:
        return self.tokenizer.encode(" ".join(text.split()), add_special_tokens=False).ids

    def _load(self) -> _Loaded:
        from jaxmoe.model.load import gguf, hf_llm

        # A scan on a CPU copies each layer's weights at every token; accelerators compile it much sooner.
        cpu = jax.default_backend() == "cpu"
        if self._path.suffix == ".gguf":
            dims, params, _ = gguf.load(self._path, stack=not cpu)
        else:
            dims, params = hf_llm.load(self._path, stack=not cpu)
        dtype = jnp.float32 if cpu else jnp.bfloat16
        if not cpu:
            params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        model = llm.LanguageModel(dims, scan_layers=not cpu, dtype=dtype)
        prefix = llm.make_prefix(model, params, jnp.array(self.tokenizer and self._before))
        vocabulary = self.tokenizer.get_vocab(with_added_tokens=True)
        # Byte-level BPE writes a line break as Ċ: only the first line counts.
        stop = [i for token, i in vocabulary.items() if token in STOPS or token.startswith("Ċ")]
        return _Loaded(model, params, prefix, jnp.array(sorted(stop), jnp.int32))


def clean(answer: str, source: str) -> str:
    """The first line of a model's answer, without the quotation marks that its source lacks."""
    line = answer.strip().split("\n")[0].strip()
    for pair in _QUOTES:
        quoted = len(line) > 1 and line[0] == pair[0] and line[-1] == pair[1]
        if quoted and not re.match(r"[\"'„“”«»‚‘]", source.strip()) and pair[0] not in line[1:-1]:
            return line[1:-1].strip()
    return line


def _weights_path(path: Path) -> Path:
    """The .gguf file of a folder, or the folder where it is one of transformers'."""
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


def _digest(path: Path) -> str:
    """SHA-256 of the weights, as jaxmoe.weights noted it or computed here."""
    marker = path.parent / weights.MARKER
    if path.is_file() and marker.exists():
        noted = json.loads(marker.read_text("utf-8")).get(path.name, {})
        if noted.get("size") == path.stat().st_size:
            return noted["sha256"]
    whole = hashlib.sha256()
    for file in [path] if path.is_file() else sorted((*path.glob("*.safetensors"), *path.glob("*.json"))):
        with open(file, "rb") as f:
            whole.update(hashlib.file_digest(f, "sha256").digest())
    return whole.hexdigest()


def _read_tokenizer(path: Path) -> "Tokenizer":
    if path.is_file():
        from jaxmoe.model.load import gguf

        return gguf.tokenizer(gguf.File(path))
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path / "tokenizer.json"))
