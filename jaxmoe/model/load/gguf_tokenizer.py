"""The tokenizer that a GGUF file's metadata describes -> tokenizers.Tokenizer: byte-level BPE, or SentencePiece's.

Control tokens are special. Nothing is added before a text or after it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# The split before BPE, by the name in tokenizer.ggml.pre: those of Qwen2's and Llama 3's tokenizer.json.
SPLITS = {
    "qwen2": _CONTRACTIONS + r"\p{N}" + _REST,
    "llama-bpe": _CONTRACTIONS + r"\p{N}{1,3}" + _REST,
}
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5  # tokenizer.ggml.token_type


def make(metadata: Mapping[str, Any], path: Path) -> "Tokenizer":
    """The tokenizer of a file.

    Raises:
        ValueError: another kind of tokenizer, or an unknown split before BPE.
    """
    from tokenizers import AddedToken

    kind, split = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"].tolist()
    vocabulary = {token: i for i, (token, use) in enumerate(zip(tokens, types, strict=True)) if use != _UNUSED}
    if kind == "gpt2" and split in SPLITS:
        made = _byte_level(vocabulary, metadata["tokenizer.ggml.merges"], split)
    elif kind == "llama":
        scores = dict(zip(tokens, metadata["tokenizer.ggml.scores"].tolist(), strict=True))
        unknown = next((token for token, use in zip(tokens, types, strict=True) if use == _UNKNOWN), None)
        made = _sentencepiece(vocabulary, scores, unknown, metadata.get("tokenizer.ggml.add_space_prefix", True))
    else:
        raise ValueError(
            f"{path}: tokenizer is {kind!r} with split {split!r}; expected 'llama', or 'gpt2' with one of "
            f"{sorted(SPLITS)}."
        )
    for token, use in zip(tokens, types, strict=True):
        if use in (_CONTROL, _USER_DEFINED):
            made.add_tokens([AddedToken(token, normalized=False, special=use == _CONTROL)])
    return made


def _byte_level(vocabulary: dict[str, int], merges: Sequence[str], split: str) -> "Tokenizer":
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pairs = [(first, second) for first, _, second in (merge.partition(" ") for merge in merges)]
    llama = split == "llama-bpe"  # takes a word that is a token whole, and its text as it is
    made = Tokenizer(models.BPE(vocabulary, pairs, byte_fallback=False, ignore_merges=llama))
    if not llama:
        made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLITS[split]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    return made


def _sentencepiece(
    vocabulary: dict[str, int], scores: Mapping[str, float], unknown: str | None, prefix: bool
) -> "Tokenizer":
    """SentencePiece's BPE: what makes the piece of the highest score is merged first; unknown characters are bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    halves = [
        (scores[piece], piece[:at], piece[at:])
        for piece in vocabulary
        for at in range(1, len(piece))
        if piece[:at] in vocabulary and piece[at:] in vocabulary
    ]
    ids = lambda half: (-half[0], vocabulary[half[1]], vocabulary[half[2]])
    merges = [(first, second) for _, first, second in sorted(halves, key=ids)]
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    steps: list[Any] = [normalizers.Replace(" ", "▁")]
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *steps] if prefix else steps)
    backwards: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*backwards, decoders.Strip(" ", 1, 0)] if prefix else backwards)
    return made
