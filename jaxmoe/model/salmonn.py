"""SALMONN: a language model that hears (Tang et al. 2024, arXiv 2310.13289), composed of the other modules.

    audio --Whisper encoder--> speech [B, S, E] --\
    audio --BEATs------------> sound [B, S', E'] --window-level Q-Former, projection--> [B, W, D] --> language model
    "USER: <Speech>" ... "</Speech> Listen to the speech ...", target ------------------ embeddings --/

`base`, {"whisper", "beats", "llm"}, is frozen and always an argument. What trains is {"connector": ..., "lora": bank}.
Shapes: B batch, W embeddings of speech, P tokens of a prompt, T tokens of a target, D width and V vocabulary of the
language model.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxmoe.data.audio import log_mel_spectrogram
from jaxmoe.data.fbank import kaldi_fbank
from jaxmoe.model import lora
from jaxmoe.model.beats import Beats, coarsen_mask
from jaxmoe.model.llm import LanguageModel
from jaxmoe.model.qformer import Connector
from jaxmoe.model.whisper import Encoder

Params = dict[str, Any]
Array = Any  # numpy on the host, jax.Array inside a step; None where there is none
LORA_TARGETS = ("blocks/attn/query", "blocks/attn/value")


class Prompted(flax.struct.PyTreeNode):
    """Utterances of one step and what is said about them.

    Attributes:
      speech: [B, S, E], Whisper's encoder output, or None to make it from the audio.
      heard: [B, S], True where there is speech; None where all 30 s are heard, silence too, as the original does.
      audio: [B, n], samples, 30 s where there is no speech; padding: [B, n], True after the end. None where neither
        encoder needs them.
      before, after: [B, P], [B, P'], tokens around the speech; after_mask False for padding, best on the left.
      targets: [B, T]; weights: [B, T], 1 where the target counts, 0 for padding on the right.
    """

    speech: Array
    heard: Array
    audio: Array
    padding: Array
    before: Array
    after: Array
    after_mask: Array
    targets: Array
    weights: Array


@dataclasses.dataclass(frozen=True)
class Salmonn:
    """The model of one run; pure functions of (base, params, ...)."""

    encoder: Encoder
    beats: Beats | None
    connector: Connector
    llm: LanguageModel
    rank: int  # of the LoRA on queries and values
    alpha: float

    def init(self, key: jax.Array) -> Params:
        """A random connector, and a LoRA that changes nothing yet."""
        d = self.llm.dims
        width = d.n_head * d.n_head_state, d.n_kv_head * d.n_head_state
        shapes = {p: (d.n_layer, d.n_state, w) for p, w in zip(LORA_TARGETS, width, strict=True)}
        speech = jnp.zeros((1, self.connector.window, self.encoder.dims.n_audio_state))
        sound = jnp.zeros((1, 1, self.beats.dims.n_state)) if self.beats else None
        first, second = jax.random.split(key)
        connector = self.connector.init(first, speech, sound)["params"]
        bank = lora.init_bank(second, shapes, num_experts=1, rank=self.rank) if self.rank else {}
        return {"connector": connector, "lora": bank}

    def hear(self, base: Params, batch: Prompted) -> tuple[jax.Array, jax.Array | None]:
        """speech [B, S, E] and BEATs' sound [B, S', E'], None without BEATs.

        What BEATs makes of an utterance depends on how far it is padded: its padded tokens are heard too.
        """
        speech, sound = batch.speech, None
        if speech is None:
            mel = log_mel_spectrogram(batch.audio, self.encoder.dims.n_mels)
            speech, _ = self.encoder.apply({"params": base["whisper"]}, mel)
        if self.beats is not None:
            fbank = kaldi_fbank(batch.audio)
            padding = coarsen_mask(batch.padding, fbank.shape[1])
            sound, _ = self.beats.apply({"params": base["beats"]}, fbank, padding)
        return speech, sound

    def speech(
        self, base: Params, params: Params, batch: Prompted, dropout: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """The connector's embeddings of the speech [B, W, D], and which of them are heard [B, W].

        dropout: a key for training; None for none.
        """
        c = self.connector
        rngs = {} if dropout is None else {"dropout": dropout}
        features = self.hear(base, batch)
        speech = c.apply({"params": params["connector"]}, *features, dropout is not None, rngs=rngs)
        heard = jnp.ones(speech.shape[:2], bool)
        if batch.heard is not None:
            starts, size = np.arange(speech.shape[1] // c.queries) * c.stride, batch.heard.shape[1]
            heard = batch.heard[:, np.minimum(starts, size - 1)] & (starts < size)[None]  # BEATs may go on longer
            heard = jnp.repeat(heard, c.queries, axis=1)  # a window is heard if it begins so
        return speech, heard

    def prompt(
        self, base: Params, params: Params, batch: Prompted, dropout: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Embeddings [B, P + W + P', D] of what comes before the target, and their mask; dropout as of `speech`."""
        speech, heard = self.speech(base, params, batch, dropout)
        mask = jnp.concatenate([jnp.ones(batch.before.shape, bool), heard, batch.after_mask], axis=1)
        before, after = self.embed(base, batch.before), self.embed(base, batch.after)
        return jnp.concatenate([before, speech.astype(before.dtype), after], axis=1), mask

    def embed(self, base: Params, tokens: jax.Array) -> jax.Array:
        """Input embeddings of the language model."""
        return self.llm.apply({"params": base["llm"]}, tokens, method="embed")

    def logits(self, base: Params, params: Params, batch: Prompted, *, count_padding: bool = False) -> jax.Array:
        """Logits [B, T, V] of the targets.

        count_padding: positions count what is masked too, as the original does in training; its generation, and ours
        throughout, do not.
        """
        where, more = self._answering(base, params, batch, None, count_padding)
        return self.llm.apply(*where, method="from_embeddings", **more)[0]

    def token_nll(
        self,
        base: Params,
        params: Params,
        batch: Prompted,
        dropout: jax.Array | None = None,
        *,
        count_padding: bool = False,
    ) -> jax.Array:
        """-log p of each target [B, T]; dropout as of `speech`, count_padding as of `logits`."""
        (variables, *where), more = self._answering(base, params, batch, dropout, count_padding)
        return self.llm.apply(variables, batch.targets, *where, method="token_nll", **more)

    def _answering(
        self, base: Params, params: Params, batch: Prompted, dropout: jax.Array | None, count_padding: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The language model's variables, and what its `states` takes to read where targets are predicted."""
        x, mask = self.prompt(base, params, batch, dropout)
        given = x.shape[1]
        x = jnp.concatenate([x, self.embed(base, batch.targets)], axis=1)
        mask = jnp.concatenate([mask, batch.weights > 0], axis=1)
        rows, length = mask.shape
        counted = jnp.broadcast_to(jnp.arange(length)[None], mask.shape)
        positions = counted if count_padding else jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        read = counted[:, given - 1 : -1]  # a token is predicted where the one before it stands
        variables = {"params": base["llm"], "lora": self.columns(params)}
        scales = jnp.full((rows, self.rank), self.alpha / max(self.rank, 1))
        return (variables, x, positions, mask), {"scales": scales, "read": read}

    def columns(self, params: Params) -> dict[str, Any]:
        """The LoRA as the "lora" collection of `llm`."""
        columns = lora.stack(params["lora"], {})
        return lora.nested(columns if self.llm.scan_layers else lora.unstack(columns))

    def merged(self, base: Params, params: Params) -> Params:
        """The language model's parameters with the LoRA folded in, for decoding."""
        columns = lora.stack(params["lora"], {})
        columns = columns if self.llm.scan_layers else lora.unstack(columns)
        return lora.merge(base["llm"], columns, jnp.full(self.rank, self.alpha / max(self.rank, 1)))
