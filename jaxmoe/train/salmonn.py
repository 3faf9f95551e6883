"""What phase `salmonn` and its rows of the table open: the frozen models on the mesh, the connector, the utterances."""

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from jaxmoe import sharding, weights
from jaxmoe.data import prepared
from jaxmoe.data.audio import N_SAMPLES, positions
from jaxmoe.data.embeddings import Embeddings, with_windows
from jaxmoe.data.prompted import Spoken, Wrapping
from jaxmoe.model.beats import Beats
from jaxmoe.model.llm import LanguageModel
from jaxmoe.model.load import load_whisper, torch_file
from jaxmoe.model.load import salmonn as load
from jaxmoe.model.load.llm import load_language_model
from jaxmoe.model.moe import resolve_dtype
from jaxmoe.model.qformer import Connector, QFormerDimensions
from jaxmoe.model.salmonn import Params, Salmonn
from jaxmoe.model.whisper import Encoder
from jaxmoe.train.setup import NO_LATENTS, embeddings_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

POSITIONS_PER_SECOND = 50  # of Whisper's encoder


@dataclasses.dataclass(frozen=True)
class Opened:
    """A run's SALMONN on its mesh."""

    mesh: jax.sharding.Mesh
    base: Params
    model: Salmonn
    params: Params  # what trains, before it is trained
    tokenizer: "Tokenizer"
    wrapping: Wrapping


def open_salmonn(config: ConfigDict, *, scan: bool) -> Opened:
    """The frozen models and the connector that config.salmonn describes: of a release, or random by the seed.

    scan: one program for all of the language model's layers; see LanguageModel.

    Raises:
      WeightsError: weights are not at hand.
      LoadError, ValueError: they do not fit the configuration.
    """
    c, dtype = config.salmonn, jnp.dtype(resolve_dtype(config.model.dtype))
    mesh = sharding.make_mesh(**config.mesh)
    dims, whisper, _ = load_whisper(config.model.backbone)
    place = functools.partial(_place, mesh=mesh, dtype=dtype)
    base = place({"whisper": whisper["encoder"]})
    llm_dims, base["llm"], tokenizer = load_language_model(weights.resolve(c.llm), mesh, dtype, stack=scan)
    beats = None
    if c.beats:
        beats_dims, tensors = load.read_beats(weights.resolve(c.beats))
        beats = Beats(beats_dims, dtype)
        shapes = jax.eval_shape(beats.init, jax.random.key(0), jnp.zeros((1, 32, 128)), jnp.zeros((1, 32), bool))
        base |= place({"beats": load.convert_beats(tensors, shapes["params"], c.beats)})
    connector = Connector(
        llm_dims.n_state,
        QFormerDimensions(c.width, c.width // 64, 2, 4 * c.width),
        1,
        round(c.window_s * POSITIONS_PER_SECOND),
        round(c.stride_s * POSITIONS_PER_SECOND),
        c.dropout,
    )
    llm = LanguageModel(llm_dims, scan, dtype, config.model.remat)
    model = Salmonn(Encoder(dims, dtype), beats, connector, llm, c.rank, c.alpha)
    params = jax.jit(model.init)(jax.random.key(config.seed))
    if c.weights:
        params = released(weights.resolve(c.weights), model)
    params = jax.device_put(params, sharding.replicated(mesh))
    return Opened(mesh, base, model, params, tokenizer, make_wrapping(tokenizer, c.template, c.end))


def _place(tree: Any, *, mesh: jax.sharding.Mesh, dtype: Any) -> Any:
    tree = jax.tree.map(lambda x: np.asarray(x, dtype), tree)
    return jax.device_put(tree, sharding.base_shardings(tree, mesh, sharding.SALMONN_RULES))


def released(path: Path, model: Salmonn) -> Params:
    """Connector and LoRA of salmonn_v1.pth, or of another file with its keys."""
    file = torch_file.load(path)
    if not isinstance(file, dict) or "model" not in file:
        raise load.LoadError(f"{path}: expected the entry 'model' of a checkpoint of SALMONN.")
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    connector, bank = load.convert_connector(file["model"], shapes["connector"], model.llm.dims.n_layer, path)
    found, wanted = (jax.tree.map(np.shape, x) for x in (bank, shapes["lora"]))
    if found != wanted:
        raise load.LoadError(f"{path}: LoRA of shapes {found}, config.salmonn.rank gives {wanted}.")
    return {"connector": connector, "lora": bank}


def make_wrapping(tokenizer: "Tokenizer", template: str, end: str) -> Wrapping:
    """Raises ValueError where the tokenizer lacks the token that ends an answer."""
    stop = tokenizer.token_to_id(end)
    begin = [tokenizer.token_to_id(name) for name in ("<bos>", "<s>")]  # Gemma has both, <s> for struck text
    if stop is None:
        raise ValueError(f"config.salmonn.end={end!r} is not a token of the language model; </s> for Llama's.")
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    return Wrapping(encode, template, tuple(token for token in begin if token is not None)[:1], stop)


def utterances(config: ConfigDict, workdir: Path, opened: Opened, split: str, limit: int = 300) -> list[Spoken]:
    """What a split offers, of long recordings their windows; what is left out is counted.

    Windows are transcribed only; targets of over `limit` tokens are left out.
    """
    folder = embeddings_folder(workdir, config.model.backbone, split)
    cached = Embeddings(folder) if config.embed.context == "trimmed" else None
    source = prepared.open_split(workdir, split)
    encode, end = opened.wrapping.encode, opened.wrapping.end
    out, too_long, unembedded = [], 0, 0
    for item in with_windows(prepared.open_metadata(workdir, split), folder):
        if item["samples"] > N_SAMPLES or (cached and item["id"] not in cached.row):
            unembedded += 1
            continue
        texts = {"translation": item["translation"].strip(), "asr": item["text"].strip()}
        targets = {task: [*encode(text), end] for task, text in texts.items() if text}
        too_long += sum(len(t) > limit for t in targets.values())
        targets = {task: t for task, t in targets.items() if len(t) <= limit}
        if targets:
            row = cached.row[item["id"]] if cached else None
            samples = functools.partial(_samples, source, item)
            spoken = make_spoken(cached, row, samples, item["samples"], opened, targets)
            out.append(dataclasses.replace(spoken, speaker=item["speaker"]))
    if unembedded:
        print(f"{unembedded} utterances of split {split!r} are left out: {NO_LATENTS}")
    if too_long:
        print(f"{too_long} texts of split {split!r} exceed {limit} tokens and are left out")
    if not out:
        raise ValueError(f"{workdir}: no utterances in split {split!r}.")
    return out


def make_spoken(
    cached: Embeddings | None, row: int | None, samples: Any, length: int, opened: Opened, targets: dict[str, list[int]]
) -> Spoken:
    """An utterance by its stored latents where there are any, and its samples where an encoder needs them."""
    if cached is None or row is None:
        return Spoken(None, samples, positions(length), targets)
    latents = functools.partial(cached.latents, row)
    return Spoken(latents, samples if opened.model.beats else None, cached.length(row), targets)


def _samples(source: prepared.Split, item: dict[str, Any]) -> np.ndarray:
    return source[item["row"]]["audio"][item["start"] :][: item["samples"]].astype(np.float32) / 32768.0
