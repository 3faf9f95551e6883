"""GGUF files of Qwen2, Llama and Gemma 3: header and tensors -> llm.LanguageModel, with the file's tokenizer.

Source: the format's description in ggml's docs/gguf.md, version 3 (2 differs in nothing that is read here).
"""

from collections.abc import Callable
import mmap
from pathlib import Path
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxmoe.model.llm import LanguageModelDimensions
from jaxmoe.model.load import gguf_tokenizer
from jaxmoe.model.load.hf_llm import assemble, gemma_dimensions, is_there

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# ours -> theirs, {} the layer
NAMES = {
    "token_embedding/embedding": "token_embd.weight",
    "blocks/attn_norm/scale": "blk.{}.attn_norm.weight",
    "blocks/attn_post_norm/scale": "blk.{}.post_attention_norm.weight",
    "blocks/attn/query_norm/scale": "blk.{}.attn_q_norm.weight",
    "blocks/attn/key_norm/scale": "blk.{}.attn_k_norm.weight",
    "blocks/attn/query/kernel": "blk.{}.attn_q.weight",
    "blocks/attn/query/bias": "blk.{}.attn_q.bias",
    "blocks/attn/key/kernel": "blk.{}.attn_k.weight",
    "blocks/attn/key/bias": "blk.{}.attn_k.bias",
    "blocks/attn/value/kernel": "blk.{}.attn_v.weight",
    "blocks/attn/value/bias": "blk.{}.attn_v.bias",
    "blocks/attn/out/kernel": "blk.{}.attn_output.weight",
    "blocks/mlp_norm/scale": "blk.{}.ffn_norm.weight",
    "blocks/mlp_post_norm/scale": "blk.{}.post_ffw_norm.weight",
    "blocks/mlp/gate/kernel": "blk.{}.ffn_gate.weight",
    "blocks/mlp/up/kernel": "blk.{}.ffn_up.weight",
    "blocks/mlp/down/kernel": "blk.{}.ffn_down.weight",
    "norm/scale": "output_norm.weight",
    "output/kernel": "output.weight",
}

ROPE_DIVISORS = "rope_freqs.weight"  # of Llama 3.1 and later
_STRING, _ARRAY = 8, 9
_NUMBERS = dict(zip([0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12], "BbHhIif?Qqd", strict=True))
_BLOCK = 1 << 16  # elements dequantised at a time


class TensorInfo(NamedTuple):
    """Where a tensor lies: shape (slowest axis first), ggml type, offset from the start of the file."""

    shape: tuple[int, ...]
    kind: int
    offset: int


class File:
    """A GGUF file: `metadata` by key, `tensors` by name, and `read` for the values of one.

    The gguf package's reader makes an object of every element of every array: 20 s for a vocabulary of 262,000.
    """

    def __init__(self, path: Path) -> None:
        """Parse the header.

        Raises:
            ValueError: not a GGUF file of version 2 or 3, or one that is cut off.
        """
        self.path = Path(path)
        with open(path, "rb") as f:
            head = f.read(8)
            if len(head) < 8 or head[:4] != b"GGUF":
                raise ValueError(f"{path} is no GGUF file: it begins with {head[:4]!r}, expected b'GGUF'.")
            self._bytes = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        version = struct.unpack("<I", head[4:])[0]
        if version not in (2, 3):
            raise ValueError(f"{path} has GGUF version {version}; expected 2 or 3, little-endian.")
        self._at = 8
        try:
            self._parse_header()
        except struct.error:
            raise ValueError(f"{path} ends inside its header ({len(self._bytes)} bytes): copy it again.") from None

    def _parse_header(self) -> None:
        tensors, keys = self._number("Q"), self._number("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self._string()
            self.metadata[key] = self._value(self._number("I"))
        infos = {}
        for _ in range(tensors):
            name = self._string()
            shape = [self._number("Q") for _ in range(self._number("I"))]
            infos[name] = (tuple(reversed(shape)), self._number("I"), self._number("Q"))
        alignment = self.metadata.get("general.alignment", 32)
        data = -(-self._at // alignment) * alignment
        self.tensors = {name: TensorInfo(shape, kind, data + at) for name, (shape, kind, at) in infos.items()}

    def _number(self, code: str) -> Any:
        value = struct.unpack_from("<" + code, self._bytes, self._at)[0]
        self._at += struct.calcsize("<" + code)
        return value

    def _string(self) -> str:
        length = self._number("Q")
        raw = self._bytes[self._at : self._at + length]
        if len(raw) < length:
            raise struct.error
        self._at += length
        return raw.decode("utf-8", "replace")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            if kind not in _NUMBERS:
                raise ValueError(f"{self.path}: metadata of type {kind}, which GGUF does not have.")
            return self._number(_NUMBERS[kind])
        kind, length = self._number("I"), self._number("Q")
        if kind in (_STRING, _ARRAY):
            return [self._value(kind) for _ in range(length)]
        dtype = np.dtype("<" + {"b": "i1", "B": "u1"}.get(_NUMBERS[kind], _NUMBERS[kind]))
        if self._at + length * dtype.itemsize > len(self._bytes):
            raise struct.error
        array = np.frombuffer(self._bytes, dtype, length, self._at)
        self._at += array.nbytes
        return array

    def read(self, name: str, transpose: bool = False) -> np.ndarray:
        """One tensor as float32, dequantised; `transpose` swaps the two axes of a matrix.

        Raises:
            ValueError: its type cannot be dequantised, or the file ends inside it.
        """
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        shape, number, offset = self.tensors[name]
        kind = GGMLQuantizationType(number)
        block, size = GGML_QUANT_SIZES[kind]  # elements, bytes
        rows, row = int(np.prod(shape[:-1], dtype=np.int64)), shape[-1] // block * size
        if offset + rows * row > len(self._bytes):
            raise ValueError(
                f"{self.path}: {name} ends at byte {offset + rows * row}, but the file has "
                f"{len(self._bytes)}: copy it again."
            )
        raw = np.frombuffer(self._bytes, np.uint8, rows * row, offset).reshape(rows, row)
        values = _aligned((shape[-1], rows) if transpose else (rows, shape[-1]))
        target = values.T if transpose else values  # [rows, shape[-1]]
        # Some rows at a time: the dequantiser's temporaries, ten times the values, stay in the processor's cache.
        step = max(1, _BLOCK // shape[-1])
        try:
            for at in range(0, rows, step):
                target[at : at + step] = dequantize(raw[at : at + step], kind)
        except NotImplementedError:
            found = f"{self.path}: {name} is {kind.name}, which cannot be dequantised"
            raise ValueError(f"{found}; take this model in another quantisation, such as Q8_0.") from None
        return values if transpose else values.reshape(shape)


def _copied(values: np.ndarray) -> np.ndarray:
    copy = _aligned((values.shape[0], values.shape[1]))
    copy[...] = values
    return copy


def _aligned(shape: tuple[int, int]) -> np.ndarray:
    """An empty float32 array that begins at a multiple of 64 bytes: JAX takes it over on a CPU, others it copies."""
    count = shape[0] * shape[1]
    buffer = np.empty(count + 16, np.float32)
    first = -(buffer.ctypes.data // 4) % 16
    return buffer[first : first + count].reshape(shape)


def load(path: Path, stack: bool = True) -> tuple[LanguageModelDimensions, dict[str, Any], "Tokenizer"]:
    """Dimensions, float32 parameters (layers stacked on axis 0 unless `stack` is False) and tokenizer of a GGUF file.

    Raises:
        ValueError: another architecture, or tensors missing (-) or unexpected (+).
    """
    file = File(path)
    dims = dimensions(file)
    permuted = file.metadata["general.architecture"] == "llama"

    def read(name: str, path: tuple[str, ...]) -> np.ndarray:
        array = file.read(name, transpose=path[-1] == "kernel")
        return _unpermuted(array, dims.n_head_state) if permuted and path[-2] in ("query", "key") else array

    names = {path: name for path, name in NAMES.items() if is_there(dims, path)}
    params = assemble(dims, names, file.tensors.keys() - {ROPE_DIVISORS}, read, file.path, stack)
    return dims, params, gguf_tokenizer.make(file.metadata, file.path)


def tokenizer(path: Path) -> "Tokenizer":
    """The tokenizer of a file alone."""
    return gguf_tokenizer.make(File(path).metadata, path)


def _unpermuted(kernel: np.ndarray, head_state: int) -> np.ndarray:
    """A kernel [D, H * K] of queries or keys as Hugging Face has it.

    llama.cpp turns neighbours of a head by one angle, not elements i and i + K / 2, and its files are ordered so.
    Source: convert_hf_to_gguf.py, LlamaModel.permute.
    """
    pairs = kernel.reshape(len(kernel), -1, head_state // 2, 2)
    return _copied(np.swapaxes(pairs, 2, 3).reshape(kernel.shape))


def dimensions(file: File) -> LanguageModelDimensions:
    """What the header says of the model.

    Raises:
        ValueError: another architecture, or a key it needs is not there.
    """
    architecture = file.metadata.get("general.architecture")
    if architecture not in ("qwen2", "llama", "gemma3"):
        raise ValueError(f"{file.path}: architecture is {architecture!r}; expected qwen2, llama or gemma3.")

    def get(key: str, default: Any = None) -> Any:
        value = file.metadata.get(f"{architecture}.{key}", default)
        if value is None:
            raise ValueError(f"{file.path}: the header lacks {architecture}.{key}.")
        return value

    heads, width, layers = get("attention.head_count"), get("embedding_length"), get("block_count")
    head = get("attention.key_length", width // heads)
    return LanguageModelDimensions(
        n_vocab=file.tensors["token_embd.weight"].shape[0],
        n_layer=layers,
        n_state=width,
        n_head=heads,
        n_kv_head=get("attention.head_count_kv", heads),
        n_head_state=head,
        n_mlp=get("feed_forward_length"),
        rope_base=float(get("rope.freq_base", 1e4 if architecture == "llama" else None)),
        norm_eps=float(f"{get('attention.layer_norm_rms_epsilon'):.7g}"),  # stored as float32: 9.999999974752427e-07
        qkv_bias=architecture == "qwen2",
        tied="output.weight" not in file.tensors,
        rope_divisors=_divisors(file, get, head),
        **(_gemma(get, width, heads, head, layers) if architecture == "gemma3" else {}),
    )


def _divisors(file: File, get: Callable[..., Any], head: int) -> tuple[float, ...]:
    """What the rotation's frequencies are divided by."""
    if ROPE_DIVISORS in file.tensors:
        return tuple(map(float, file.read(ROPE_DIVISORS)))
    kind = get("rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise ValueError(f"{file.path}: rope.scaling.type is {kind!r}; expected none or linear.")
    return (float(get("rope.scaling.factor")),) * (head // 2) if kind == "linear" else ()


def _gemma(get: Callable[..., Any], width: int, heads: int, head: int, layers: int) -> dict[str, Any]:
    """What the header leaves to the reader, as llama.cpp's llama-model.cpp fills it in."""
    every = get("attention.sliding_window_pattern", 6)
    local = [(i + 1) % every != 0 for i in range(layers)] if np.ndim(every) == 0 else every
    return gemma_dimensions(
        width=width,
        local=tuple(map(bool, local)),
        window=get("attention.sliding_window"),
        attention_scale=(width // heads if layers == 62 else head) ** -0.5,  # 62: the 27B
        rope_local_base=float(get("rope.freq_base_swa", 1e4)),
    )
