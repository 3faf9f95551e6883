"""Marian from Hugging Face: config.json, *.safetensors or pytorch_model.bin, source.spm, target.spm, vocab.json."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flax.traverse_util import unflatten_dict
import numpy as np

from jaxmoe.model.beam import Rules
from jaxmoe.model.load.llm import open_tensors
from jaxmoe.model.marian import ACTIVATIONS, MarianDimensions

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
_NORM = {"scale": "weight", "bias": "bias"}
# Not read: positions are computed; a key's bias adds the same to all scores of a query, which the softmax takes out.
_LEFT_OUT = ("embed_positions.weight", "k_proj.bias", "embed_tokens.weight", "lm_head.weight")

# Fields of generation_config.json: those that are followed, with transformers' defaults, and those that must be off.
_SEARCH: dict[str, Any] = {"num_beams": 1, "length_penalty": 1.0, "early_stopping": False}
_PLAIN = {"num_beam_groups": 1, "no_repeat_ngram_size": 0, "repetition_penalty": 1.0, "do_sample": False}


def dimensions(path: Path) -> MarianDimensions:
    """What a transformers config.json says.

    Raises:
        ValueError: another architecture, or an option that marian.py does not compute.
    """
    c = json.loads(path.read_text("utf-8"))
    if c.get("model_type") != "marian":
        raise ValueError(f"{path}: model_type is {c.get('model_type')!r}; expected 'marian'.")
    pairs = ("attention_heads", "ffn_dim")
    wrong = [f"encoder_{x} != decoder_{x}" for x in pairs if c[f"encoder_{x}"] != c[f"decoder_{x}"]]
    wrong += [f"{x}=false" for x in ("share_encoder_decoder_embeddings", "tie_word_embeddings") if not c.get(x, True)]
    if c["activation_function"] not in ACTIVATIONS:
        wrong.append(f"activation_function={c['activation_function']!r}")
    if c.get("decoder_start_token_id", c["pad_token_id"]) != c["pad_token_id"]:
        wrong.append("decoder_start_token_id is not pad_token_id")
    if wrong:
        raise ValueError(f"{path}: {', '.join(wrong)}; only models like opus-mt's are supported.")
    return MarianDimensions(
        n_vocab=c["vocab_size"],
        n_state=c["d_model"],
        n_head=c["encoder_attention_heads"],
        n_mlp=c["encoder_ffn_dim"],
        n_encoder_layer=c["encoder_layers"],
        n_decoder_layer=c["decoder_layers"],
        activation=c["activation_function"],
        scale_embedding=bool(c.get("scale_embedding")),
        pad=c["pad_token_id"],
        eos=c["eos_token_id"],
        n_ctx=c["max_position_embeddings"],
    )


def search(folder: Path, dims: MarianDimensions) -> tuple[int, Rules]:
    """Width and rules of the beam search that generation_config.json asks for, or config.json, where older ones say it.

    Raises:
        ValueError: a field that this search does not follow.
    """
    files = (folder / "generation_config.json", folder / "config.json")
    path = next(file for file in files if file.exists())
    c = json.loads(path.read_text("utf-8"))
    given = {name: default if c.get(name) is None else c[name] for name, default in _SEARCH.items()}
    wrong = [name for name, plain in _PLAIN.items() if c.get(name) not in (None, plain)]
    wrong += ["early_stopping"] * (given["early_stopping"] not in (True, False))
    if wrong:
        found = ", ".join(f"{name}={c[name]!r}" for name in wrong)
        raise ValueError(f"{path}: {found}; this search does not follow it. Take it out to search without.")
    return given["num_beams"], Rules(dims.eos, float(given["length_penalty"]), given["early_stopping"])


def _names(dims: MarianDimensions) -> dict[str, str]:
    """Our path -> theirs, {} the layer. Kernels are transposed: torch keeps [out, in]."""
    names = {"embedding": "model.shared.weight", "final_bias": "final_logits_bias"}
    for half in ("encoder", "decoder"):
        ours, theirs = f"{half}/blocks", f"model.{half}.layers.{{}}"
        attentions = {"attn": "self_attn"} | ({"cross_attn": "encoder_attn"} if half == "decoder" else {})
        for attn, module in attentions.items():
            for name, projection in _ATTENTION.items():
                names[f"{ours}/{attn}/{name}/kernel"] = f"{theirs}.{module}.{projection}.weight"
                if name != "key":
                    names[f"{ours}/{attn}/{name}/bias"] = f"{theirs}.{module}.{projection}.bias"
            for leaf, name in _NORM.items():
                names[f"{ours}/{attn}_ln/{leaf}"] = f"{theirs}.{module}_layer_norm.{name}"
        for leaf, name in _NORM.items():
            names[f"{ours}/mlp_ln/{leaf}"] = f"{theirs}.final_layer_norm.{name}"
        for name, module in {"mlp1": "fc1", "mlp2": "fc2"}.items():
            names[f"{ours}/{name}/kernel"] = f"{theirs}.{module}.weight"
            names[f"{ours}/{name}/bias"] = f"{theirs}.{module}.bias"
    return names


def load(folder: Path) -> tuple[MarianDimensions, dict[str, Any]]:
    """Dimensions and float32 parameters.

    Raises:
        ValueError: not a Marian folder, or tensors missing (-) or unexpected (+).
    """
    dims = dimensions(folder / "config.json")
    where = open_tensors(folder)
    layers = {"encoder": dims.n_encoder_layer, "decoder": dims.n_decoder_layer}
    names = _names(dims)
    wanted = {n.format(i) for p, n in names.items() for i in range(layers.get(p.split("/")[0], 1))}
    missing, unexpected = wanted - set(where), {n for n in where if not n.endswith(_LEFT_OUT)} - wanted
    if missing or unexpected:
        lines = [f"- {name}" for name in sorted(missing)] + [f"+ {name}" for name in sorted(unexpected)]
        raise ValueError(f"{folder}: tensors are missing (-) or unexpected (+):\n" + "\n".join(lines))

    def read(path: str, name: str) -> np.ndarray:
        array = np.asarray(where[name][:], np.float32)
        return np.ascontiguousarray(array.T) if path.endswith("kernel") else array

    tree = {}
    for path, name in names.items():
        half = path.split("/")[0]
        stack = [read(path, name.format(i)) for i in range(layers.get(half, 1))]
        tree[tuple(path.split("/"))] = np.stack(stack) if half in layers else stack[0].reshape(-1, *stack[0].shape[1:])
    tree[("final_bias",)] = tree[("final_bias",)].reshape(-1)
    return dims, unflatten_dict(tree)


def tokenizer(folder: Path, side: str) -> "Tokenizer":
    """The SentencePiece unigram model `source` or `target` of a folder; its ids are its own, not the model's.

    Raises:
        ValueError: there is none.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers.utils import sentencepiece_model_pb2_new as sentencepiece

    path = folder / f"{side}.spm"
    if not path.exists():
        raise ValueError(f"{path} is missing; a Marian folder holds source.spm, target.spm and vocab.json.")
    proto: Any = sentencepiece.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(path.read_bytes())
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    made = Tokenizer(models.Unigram(pieces, proto.trainer_spec.unk_id, byte_fallback=False))
    steps: list[Any] = [normalizers.Replace("  ", " ")]
    if proto.normalizer_spec.precompiled_charsmap:
        steps.insert(0, normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap))
    made.normalizer = normalizers.Sequence(steps)
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return made
