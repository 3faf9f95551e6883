"""One window's latents -> its tokens: search with fallback to sampling, and what is doubtful about them.

Nothing that was decoded is dropped: suspected loops and hallucinations are flagged, since stuttered speech repeats
itself; what an adapted decoder says where Whisper itself hears no speech stands apart, as `withheld`.
Source of the fallback rules: transcribe() of openai/whisper, whisper/transcribe.py (20250625).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoe.data.text import Tokenizer
from jaxmoe.model.decode import DecodingOptions, DecodingResult, decode
from jaxmoe.segments import compression_ratio, repeats
from jaxmoe.system import Recogniser


@dataclasses.dataclass(frozen=True)
class TranscribeOptions:
    """How to transcribe; thresholds and temperatures are openai/whisper's.

    Args:
      beam_size: at temperature 0.
      best_of: samples at temperatures above 0.
      temperatures: tried in turn until a window is neither repetitive nor unlikely.
      no_speech_threshold: probability of <|nospeech|>, by the decoder without adapters, above which text is flagged.
      withhold_threshold: the same above which an adapted decoder's text is withheld. Speech under noise or unlike
        Whisper's own reaches .8, rooms and noise alone do not fall below .89 (benchmarks/silence.py).
      condition_on_previous_text: prompts a window with the text before it. Off: in disordered speech one loop would
        otherwise breed the next.
      batch_size: windows worked on at a time, of as many recordings.
      max_tokens: longest text of a window.
      cut_at_pauses: cuts recordings of over 30 s into parts where they are quietest, which are worked on side by side.
      without_timestamps: a window is one segment, heard once; otherwise what it has left unfinished is heard again.
      seed: of the samples; a window's samples depend on it and on the window's place only.
    """

    language: str = "en"
    task: str = "transcribe"
    beam_size: int = 5
    best_of: int = 5
    length_penalty: float | None = None
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio_threshold: float = 2.4
    logprob_threshold: float = -1.0
    no_speech_threshold: float = 0.6
    withhold_threshold: float = 0.85
    condition_on_previous_text: bool = False
    batch_size: int = 8
    max_tokens: int = 224
    cut_at_pauses: bool = False
    without_timestamps: bool = False
    seed: int = 0


class Window(NamedTuple):
    """What one window of 30 s gave."""

    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    gates: np.ndarray | None = None  # [E]


class Inputs(NamedTuple):
    """What a search reads of a batch."""

    latents: jax.Array  # [B, S, D]
    embedding: np.ndarray | jax.Array  # [B, D]
    cross_mask: np.ndarray | None  # [B, S]
    prompt: np.ndarray  # [B, P]
    token_mask: np.ndarray  # [B, P]


def decode_latents(
    system: Recogniser,
    latents: np.ndarray | jax.Array,
    mask: np.ndarray | None,
    embedding: np.ndarray | jax.Array,
    options: TranscribeOptions,
) -> list[dict[str, Any]]:
    """Texts of utterances whose latents [B, S, D] are kept, with fallback, without timestamps.

    Args:
      mask: [B, S], the positions that may be attended to; None for all.
      embedding: [B, D], what the gate reads.

    Returns:
      {"hypothesis", "avg_logprob", "compression_ratio", "flags"} of each, and "withheld" where it is (segments.py).
    """
    start = system.tokenizer.sot_sequence(options.language, options.task)
    prompt = np.tile(np.array(start, np.int32), (len(latents), 1))
    inputs = Inputs(jnp.asarray(latents), embedding, mask, prompt, np.ones(prompt.shape, bool))
    windows = search(system, inputs, np.zeros(len(latents), int), False, options)
    texts = [system.tokenizer.decode(w.tokens) for w in windows]
    rows = [
        {
            "hypothesis": text.strip(),
            "avg_logprob": window.avg_logprob,
            "compression_ratio": window.compression_ratio,
            "flags": doubts(window, text, options),
        }
        for window, text in zip(windows, texts, strict=True)
    ]
    return [
        row | {"hypothesis": "", "withheld": row["hypothesis"]} if is_withheld(system, window, options) else row
        for row, window in zip(rows, windows, strict=True)
    ]


def search(
    system: Recogniser, inputs: Inputs, seeks: np.ndarray, timestamps: bool, options: TranscribeOptions
) -> list[Window]:
    """Decodes at the first temperature, then what has failed at the next, and so on."""
    columns, scales = system.adapt(inputs.embedding)
    found: list[list[Window]] = [[] for _ in seeks]
    todo = np.arange(len(seeks))
    for attempt, temperature in enumerate(options.temperatures):
        take = lambda x: x if x is None or len(todo) == len(seeks) else x[todo]  # noqa: B023  used in this turn only
        result = decode(
            system.model,
            system.params,
            take(inputs.latents),
            prompt=take(inputs.prompt),
            token_mask=take(inputs.token_mask),
            tokenizer=system.tokenizer,
            options=DecodingOptions(
                beam_size=options.beam_size,
                best_of=options.best_of,
                temperature=temperature,
                max_tokens=options.max_tokens,
                timestamps=timestamps,
                length_penalty=options.length_penalty,
            ),
            columns=columns,
            scales=take(scales),
            cross_mask=take(inputs.cross_mask),
            key=_keys(options, seeks[todo], attempt) if temperature > 0 else None,
        )
        for k, i in enumerate(todo):
            found[i].append(_window(result, k, temperature, system.tokenizer))
        todo = np.array([i for i in todo if needs_fallback(found[i][-1], options)], int)
        if not len(todo):
            break
    return [best(windows, options) for windows in found]


def _keys(options: TranscribeOptions, seeks: np.ndarray, attempt: int) -> jax.Array:
    """A key for each window, by its place and the attempt."""
    key = jax.random.key(options.seed)
    return jnp.stack([jax.random.fold_in(key, int(s) * len(options.temperatures) + attempt) for s in seeks])


def _window(result: DecodingResult, row: int, temperature: float, tokenizer: Tokenizer) -> Window:
    return Window(
        result.tokens[row],
        temperature,
        float(result.avg_logprob[row]),
        compression_ratio(tokenizer.decode(result.tokens[row]).strip()),
        float(result.no_speech_prob[row]),
    )


def needs_fallback(window: Window, options: TranscribeOptions) -> bool:
    """Whether another temperature is tried: a loop, or an unlikely text where there is speech."""
    unlikely = window.avg_logprob < options.logprob_threshold
    if unlikely and window.no_speech_prob > options.no_speech_threshold:
        return False  # silence: another guess would be no better
    return unlikely or window.compression_ratio > options.compression_ratio_threshold


def best(windows: list[Window], options: TranscribeOptions) -> Window:
    """The last one, which passed; or if none did, the likeliest of those that do not repeat themselves.

    Source: generate_with_fallback of faster-whisper; openai/whisper takes the last and hottest.
    """
    if not needs_fallback(windows[-1], options):
        return windows[-1]
    calm = [w for w in windows if w.compression_ratio <= options.compression_ratio_threshold]
    return max(calm or windows, key=lambda w: w.avg_logprob)


def doubts(window: Window, text: str, options: TranscribeOptions) -> list[str]:
    """The flags of a window's text: "repetition", "low_confidence", "no_speech"."""
    found = {
        "repetition": window.compression_ratio > options.compression_ratio_threshold or repeats(text),
        "low_confidence": window.avg_logprob < options.logprob_threshold,
        "no_speech": window.no_speech_prob > options.no_speech_threshold,
    }
    return [flag for flag, holds in found.items() if holds]


def is_withheld(system: Recogniser, window: Window, options: TranscribeOptions) -> bool:
    """Whether a window's text is invented: by adapters, where the decoder without them hears no speech.

    openai/whisper asks besides that the text be unlikely; adapters are as sure of what they invent as of what is said.
    """
    return system.invents_on_silence and window.no_speech_prob > options.withhold_threshold
