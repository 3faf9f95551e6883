"""Marian (Helsinki-NLP's opus-mt-en-de and its like) as a translator: tokens, their German, the loss on a pair.

It searches as the folder's generation_config.json says (opus-mt's: a beam of 4 or 6), greedily where there is none.
"""

from collections.abc import Sequence
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmoe.data.pairs import PairBatch
from jaxmoe.model import lora, marian
from jaxmoe.model.load import marian as loader


class MarianModel:
    """A Hugging Face folder with config.json, *.safetensors, source.spm, target.spm and vocab.json."""

    prompt = "none"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._dims = loader.dimensions(folder / "config.json")
        self.longest = self._dims.n_ctx
        self.beams, self._rules = loader.search(folder, self._dims)
        self._vocabulary: dict[str, int] = json.loads((folder / "vocab.json").read_text("utf-8"))
        self._pieces = {i: piece for piece, i in self._vocabulary.items()}
        self._tokenizers = {side: loader.tokenizer(folder, side) for side in ("source", "target")}

    def source(self, text: str) -> list[int]:
        """An English text with the end token."""
        return self._tokens("source", text)

    def target(self, text: str) -> list[int]:
        """A German text with the end token."""
        return self._tokens("target", text)

    def _tokens(self, side: str, text: str) -> list[int]:
        pieces = self._tokenizers[side].encode(" ".join(text.split()), add_special_tokens=False).tokens
        unknown = self._vocabulary["<unk>"]
        return [self._vocabulary.get(piece, unknown) for piece in pieces] + [self._dims.eos]

    def limit(self, source: Sequence[int]) -> int:
        """Most tokens of a translation: twice the source's and ten, so that a repetition ends."""
        return min(2 * len(source) + 10, self._dims.n_ctx)

    def load(self, columns: lora.Columns, scales: jax.Array) -> None:
        """Reads the weights and merges the adapters into them, where there are any (scales [K])."""
        model, params = self._read()
        self._model, self._params = model, lora.merge(params, columns, scales)

    @property
    def search(self) -> str:
        """How it searches, in the translator's signature."""
        if self.beams == 1:
            return "greedy"
        return f"beam={self.beams}:length_penalty={self._rules.length_penalty}:early={self._rules.early_stopping}"

    def translate(self, tokens: np.ndarray, mask: np.ndarray, limit: np.ndarray, texts: Sequence[str]) -> list[str]:
        """Translations of sources tokens [B, S], padded on the left; texts, at most B, are what they say."""
        slots = min(2 * tokens.shape[1] + 10, self._dims.n_ctx)
        mask = mask | ~mask.any(axis=1, keepdims=True)  # a row of padding looks at padding
        given = (self._model, self._params, jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(limit))
        if self.beams == 1:
            out, number = marian.greedy(*given, slots)
        else:
            out, number = marian.beam_search(*given, self._rules, beams=self.beams, slots=slots)
        rows = zip(np.asarray(out), np.asarray(number), texts, strict=False)
        return [self._text(ids[:n].tolist()) for ids, n, _ in rows]

    def _text(self, ids: Sequence[int]) -> str:
        return "".join(self._pieces.get(i, "") for i in ids).replace("▁", " ").strip()

    def trainable(self) -> tuple[Any, "TokenNll"]:
        """The frozen side {"params"} and the loss that fine-tuning needs."""
        model, params = self._read()
        return {"params": params}, TokenNll(model)

    def _read(self) -> tuple[marian.Marian, Any]:
        dims, params = loader.load(self._folder)
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        return marian.Marian(dims, dtype), jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)


@dataclasses.dataclass(frozen=True)
class TokenNll:
    """-log p of each target [B, T] of a batch under low-rank columns."""

    model: marian.Marian

    def __call__(self, base: Any, columns: Any, scales: jax.Array, batch: PairBatch) -> jax.Array:
        start = jnp.full_like(batch.targets[:, :1], self.model.dims.pad)
        tokens = jnp.concatenate([start, batch.targets[:, :-1]], axis=1)
        variables = {"params": base["params"], "lora": columns}
        logits = self.model.apply(variables, batch.source, batch.source_mask, tokens, scales)
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
