"""A small instruction-tuned language model as a translator: its tokens, its greedy answer, its loss on a pair.

The prompt's beginning, with a few examples, is read once by the base model; adapters act on the text and the answer
alone. Fine-tuning therefore starts from the prompted model, and a pair costs its own tokens.
"""

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
from pathlib import Path
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoe.data.pairs import PairBatch
from jaxmoe.model import llm, llm_decode, lora
from jaxmoe.mt import prompt as prompts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_QUOTES = ('""', "„“", "“”", "«»", "»«", "''", "‚‘")


class _Prompt(NamedTuple):
    """A tokenizer and, in its tokens, what stands around a text and ends an answer."""

    tokenizer: "Tokenizer"
    digest: str
    before: list[int]
    after: list[int]
    end: list[int]


class _Loaded(NamedTuple):
    model: llm.LanguageModel
    params: Any
    prefix: llm.Cache
    stop: jax.Array


class ChatModel:
    """A GGUF file or a Hugging Face folder of a Qwen2, Llama or Gemma 3 that was trained to answer."""

    longest = 2048  # tokens of a source
    search = "greedy"

    def __init__(self, path: Path) -> None:
        self._path = path

    @functools.cached_property
    def _around(self) -> _Prompt:
        made = _read_tokenizer(self._path)
        turns = prompts.choose(made, self._path)
        before, after = turns.before(), turns.after()
        ids = lambda text: made.encode(text, add_special_tokens=False).ids
        digest = hashlib.sha256(f"{before}\0{after}".encode()).hexdigest()[:12]
        around = _Prompt(made, digest, ids(before), ids(after), ids(turns.end))
        made.encode_special_tokens = True  # from here on control tokens inside a text are read as text
        return around

    @property
    def prompt(self) -> str:
        """A digest of the prompt around a text."""
        return self._around.digest

    @property
    def tokenizer(self) -> "Tokenizer":
        """The model's tokenizer; it reads control tokens inside a text as text."""
        return self._around.tokenizer

    def source(self, text: str) -> list[int]:
        """What follows the shared beginning of the prompt."""
        return self.text(text) + self._around.after

    def target(self, text: str) -> list[int]:
        """An answer with the token that ends it."""
        return self.text(text) + self._around.end

    def text(self, text: str) -> list[int]:
        """A text alone."""
        return self.tokenizer.encode(" ".join(text.split()), add_special_tokens=False).ids

    def limit(self, source: Sequence[int]) -> int:
        """Most tokens of an answer: twice the source's and ten, so that a repetition ends."""
        return 2 * (len(source) - len(self._around.after)) + 10

    def load(self, columns: lora.Columns, scales: jax.Array) -> None:
        """Reads the weights and merges the adapters into them, where there are any (scales [K])."""
        # A scan on a CPU copies each layer's weights at every token; accelerators compile it much sooner.
        scan = jax.default_backend() != "cpu"
        model, params = self._read(scan)
        prefix = llm_decode.make_prefix(model, params, jnp.array(self._around.before))
        params = lora.merge(params, columns if scan else lora.unstack(columns), scales)
        if not scan:
            lora.transpose_kernels(params)
        vocabulary = self.tokenizer.get_vocab(with_added_tokens=True)
        # Byte-level BPE writes a line break as Ċ, SentencePiece as itself or as a byte: only the first line counts.
        ends = ("Ċ", "\n", "<0x0A>")
        stop = [i for token, i in vocabulary.items() if token in prompts.STOPS or token.startswith(ends)]
        self._loaded = _Loaded(model, params, prefix, jnp.array(sorted(stop), jnp.int32))

    def translate(self, tokens: np.ndarray, mask: np.ndarray, limit: np.ndarray, texts: Sequence[str]) -> list[str]:
        """Greedy answers to sources tokens [B, S], padded on the left; texts, at most B, are what they say."""
        loaded = self._loaded
        slots = max(96, 3 * tokens.shape[1] + 10)  # one program decodes all prompts of up to 28 tokens
        out, number = llm_decode.greedy(
            loaded.model, loaded.params, tokens, mask, limit, loaded.stop, loaded.prefix, slots=slots
        )
        lines = [ids[:n].tolist() for ids, n in zip(np.asarray(out), np.asarray(number), strict=True)]
        return [clean(self.tokenizer.decode(ids), text) for ids, text in zip(lines, texts, strict=False)]

    def trainable(self) -> tuple[Any, "TokenNll"]:
        """The frozen side {"params", "prefix"}, layers stacked, and the loss that fine-tuning needs."""
        model, params = self._read(scan=True)
        prefix = llm_decode.make_prefix(model, params, jnp.array(self._around.before))
        return {"params": params, "prefix": prefix}, TokenNll(model)

    def _read(self, scan: bool) -> tuple[llm.LanguageModel, Any]:
        from jaxmoe.model.load import gguf, hf_llm

        load = gguf.load if self._path.suffix == ".gguf" else hf_llm.load
        dims, params, *_ = load(self._path, stack=scan)
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        if dtype != jnp.float32:
            params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        return llm.LanguageModel(dims, scan_layers=scan, dtype=dtype), params


@dataclasses.dataclass(frozen=True)
class TokenNll:
    """-log p of each target [B, T] of a batch under low-rank columns."""

    model: llm.LanguageModel

    def __call__(self, base: Any, columns: Any, scales: jax.Array, batch: PairBatch) -> jax.Array:
        size = batch.source.shape[1]
        tokens = jnp.concatenate([batch.source, batch.targets[:, :-1]], axis=1)  # [B, S + T - 1]
        mask = jnp.concatenate([batch.source_mask, batch.weights[:, :-1] > 0], axis=1)
        span = llm.prefix_length(base["prefix"])
        positions = span + jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        # The vocabulary's GEMM, half of the work otherwise, at the places before a target only.
        read = jnp.broadcast_to(size - 1 + jnp.arange(batch.targets.shape[1]), batch.targets.shape)
        where = self.model.apply({"params": base["params"]}, tokens, method="embed"), positions, mask
        more = {"scales": scales, "prefix": base["prefix"], "read": read}
        variables = {"params": base["params"], "lora": columns}
        return self.model.apply(variables, batch.targets, *where, method="token_nll", **more)


def clean(answer: str, source: str) -> str:
    """The first line of a model's answer, without the quotation marks that its source lacks."""
    line = answer.strip().split("\n")[0].strip()
    for pair in _QUOTES:
        quoted = len(line) > 1 and line[0] == pair[0] and line[-1] == pair[1]
        if quoted and not re.match(r"[\"'„“”«»‚‘]", source.strip()) and pair[0] not in line[1:-1]:
            return line[1:-1].strip()
    return line


def _read_tokenizer(path: Path) -> "Tokenizer":
    if path.is_file():
        from jaxmoe.model.load import gguf

        return gguf.tokenizer(path)
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path / "tokenizer.json"))
