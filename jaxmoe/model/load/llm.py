"""A language model by path, straight onto a mesh: GGUF, or a Hugging Face folder of safetensors or .bin files.

From a folder every device's part of every leaf is read from the mapped files, cast and placed: beside the result,
memory holds one such part at a time, never a second copy of the model.
"""

from collections.abc import Mapping
from pathlib import Path
import re
from typing import TYPE_CHECKING, Any

from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import numpy as np

from jaxmoe import sharding
from jaxmoe.model.llm import LanguageModelDimensions
from jaxmoe.model.load import gguf, hf_llm, torch_file, tree
from jaxmoe.model.load.tree import LoadError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BUFFERS = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"  # old exports have them


def load_language_model(
    path: Path, mesh: jax.sharding.Mesh, dtype: Any, *, stack: bool
) -> tuple[LanguageModelDimensions, dict[str, Any], "Tokenizer"]:
    """Dimensions, parameters on `mesh` (by sharding.SALMONN_RULES) and tokenizer of a .gguf file or a folder.

    Raises:
      LoadError, ValueError: another architecture, or tensors missing (-) or unexpected (+).
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.glob("*.gguf"))
    if len(files) == 1:
        dims, params, tokenizer = gguf.load(files[0], stack=stack)
        where = sharding.base_shardings({"llm": params}, mesh, sharding.SALMONN_RULES)["llm"]
        return dims, jax.tree.map(lambda x, s: jax.device_put(x.astype(dtype), s), params, where), tokenizer
    dims, params = load_sharded(path, mesh, dtype, stack=stack)
    return dims, params, read_tokenizer(path)


def load_sharded(
    folder: Path, mesh: jax.sharding.Mesh, dtype: Any, *, stack: bool = True
) -> tuple[LanguageModelDimensions, dict[str, Any]]:
    """Dimensions and parameters of a Hugging Face folder, cast to `dtype` and placed on `mesh`."""
    dims = hf_llm.dimensions(folder / "config.json")
    found = {name: x for name, x in open_tensors(folder).items() if not re.fullmatch(_BUFFERS, name)}
    if dims.tied:
        found.pop("lm_head.weight", None)  # some exporters write the embedding twice
    names = hf_llm.names(dims)
    wanted = {n.format(i) for p, n in names.items() for i in range(dims.n_layer if p.startswith("blocks/") else 1)}
    tree.check_names(folder, wanted, found)
    leaves = {}  # our path -> their names, one a layer
    for path, name in names.items():
        inside = path.startswith("blocks/")
        if stack or not inside:
            leaves[path] = [name.format(i) for i in range(dims.n_layer if inside else 1)]
        else:
            leaves |= {path.replace("blocks", f"blocks_{i}"): [name.format(i)] for i in range(dims.n_layer)}
    shapes = {}
    for path, theirs in leaves.items():
        shape = _shape(dims, path, theirs, found)
        shapes[path] = jax.ShapeDtypeStruct((dims.n_layer, *shape) if path.startswith("blocks/") else shape, dtype)
    where = sharding.base_shardings({"llm": unflatten_dict(shapes, sep="/")}, mesh, sharding.SALMONN_RULES)["llm"]
    where = flatten_dict(where, sep="/")
    more = {path: hf_llm.offset(dims, tuple(path.split("/"))) for path in leaves}
    made = {path: _place(shapes[path], where[path], path, leaves[path], found, more[path]) for path in leaves}
    return dims, unflatten_dict(made, sep="/")


def _shape(dims: LanguageModelDimensions, path: str, theirs: list[str], found: Mapping[str, Any]) -> tuple[int, ...]:
    """Shape of one layer's leaf, which every tensor must have."""
    expected = hf_llm.shape(dims, tuple(path.split("/")))
    for name in theirs:
        shape = tuple(found[name].shape)
        if (shape[::-1] if path.endswith("kernel") else shape) != expected:
            raise LoadError(f"{name} is {list(shape)} in the file, expected {list(expected)} ([in, out]).")
    return expected


def _place(
    leaf: jax.ShapeDtypeStruct,
    where: jax.sharding.Sharding,
    path: str,
    theirs: list[str],
    found: Mapping[str, Any],
    offset: float,
) -> jax.Array:
    """A leaf on its devices, each part read when it is asked for, `offset` added to it."""
    stacked, transposed = path.startswith("blocks/"), path.endswith("kernel")

    def part(index: Any) -> np.ndarray:
        layers, index = (theirs[index[0]], index[1:]) if stacked else (theirs, index)
        turn = (lambda x: x.T) if transposed else (lambda x: x + offset if offset else x)
        read = lambda name: turn(np.asarray(found[name][index[::-1] if transposed else index]))
        if not stacked:
            return np.ascontiguousarray(read(layers[0]), leaf.dtype)
        first = read(layers[0])
        out = np.empty((len(layers), *first.shape), leaf.dtype)
        for i, name in enumerate(layers):
            out[i] = first if i == 0 else read(name)
        return out

    return jax.make_array_from_callback(leaf.shape, where, part)


class _Slices:
    """One tensor of a safetensors file, read where it is indexed."""

    def __init__(self, file: Any, name: str):
        self.slice = file.get_slice(name)
        self.shape = tuple(self.slice.get_shape())

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.slice[index]


def open_tensors(folder: Path) -> dict[str, Any]:
    """Name -> tensor of all *.safetensors of a folder, else of its pytorch_model*.bin, nothing read yet.

    Raises:
      LoadError: there are none, or a name is in two files.
    """
    import safetensors

    found: dict[str, Any] = {}
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise LoadError(f"{folder} holds neither *.safetensors nor pytorch_model*.bin; expected a model's weights.")
    for path in files:
        if path.suffix == ".bin":
            some = torch_file.load(path)
        else:
            file = safetensors.safe_open(str(path), framework="numpy")
            some = {name: _Slices(file, name) for name in file.keys()}
        if twice := found.keys() & some.keys():
            raise LoadError(f"{path}: {sorted(twice)[:3]} are in another file of {folder} too; keep one set.")
        found |= some
    return found


def read_tokenizer(folder: Path) -> "Tokenizer":
    """Raises LoadError where there is only a SentencePiece model, saying how to convert it."""
    from tokenizers import Tokenizer

    if not (folder / "tokenizer.json").is_file():
        raise LoadError(
            f"{folder}: no tokenizer.json. Llama's tokenizer.model becomes one by transformers' "
            "LlamaTokenizerFast.from_pretrained(FOLDER).save_pretrained(FOLDER)."
        )
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
