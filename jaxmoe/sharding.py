"""The device mesh and where each array lives on it.

Batches are split over the axis "data"; the base model's matrices over "model" where that axis is wider than one
(large-v2 on small devices); adapters, gate and optimizer state are small and replicated.
"""

import re
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

PyTree = Any

# First match wins; leading None is the axis of scanned layers. The last two name every leaf that stays whole.
BASE_RULES: tuple[tuple[str, P], ...] = (
    (r".*/blocks/.*(query|key|value|mlp1)/kernel", P(None, None, "model")),
    (r".*/blocks/.*(query|key|value|mlp1)/bias", P(None, "model")),
    (r".*/blocks/.*(out|mlp2)/kernel", P(None, "model", None)),
    (r".*/blocks/.*(out|mlp2)/bias", P()),
    (r"decoder/token_embedding/embedding", P()),
    (r".*(_ln|/ln|/ln_post)/(scale|bias)", P()),
    (r"encoder/conv[12]/(kernel|bias)|(encoder|decoder)/positional_embedding", P()),
)
# SALMONN's frozen models under {"whisper", "beats", "llm"}; BEATs is small and stays whole.
SALMONN_RULES: tuple[tuple[str, P], ...] = (
    (r"beats/.*", P()),
    (r"(whisper|llm)/blocks/.*(query|key|value|mlp1|gate|up)/kernel", P(None, None, "model")),
    (r"(whisper|llm)/blocks/.*(query|key|value|mlp1)/bias", P(None, "model")),
    (r"(whisper|llm)/blocks/.*(out|mlp2|down)/kernel", P(None, "model", None)),
    (r"llm/blocks_\d+/.*(query|key|value|gate|up)/kernel", P(None, "model")),
    (r"llm/blocks_\d+/.*(query|key|value)/bias", P("model")),
    (r"llm/blocks_\d+/.*(out|down)/kernel", P("model", None)),
    (r"llm/token_embedding/embedding", P(None, "model")),
    (r"llm/output/kernel", P(None, "model")),
    (r"whisper/blocks/.*(out|mlp2)/bias|whisper/conv[12]/(kernel|bias)|whisper/positional_embedding", P()),
    (r"(whisper|llm)/(.*(_ln|_norm)|ln_post|norm)/(scale|bias)", P()),
)


def make_mesh(data: int = -1, model: int = 1) -> Mesh:
    """A mesh of axes ("data", "model"); data -1 takes all devices that `model` leaves.

    Raises:
      ValueError: if the devices do not divide into the mesh.
    """
    devices = jax.device_count()
    if data == -1:
        data = devices // model
    if data * model > devices or data < 1 or (jax.process_count() > 1 and data * model != devices):
        raise ValueError(
            f"config.mesh data={data} x model={model}, but there are {devices} devices; "
            "choose sizes whose product is the number of devices."
        )
    chosen = np.asarray(jax.devices()[: data * model]).reshape(data, model)
    return Mesh(chosen, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def base_shardings(base: PyTree, mesh: Mesh, rules: tuple[tuple[str, P], ...] = BASE_RULES) -> PyTree:
    """NamedSharding of every leaf of frozen parameters, Whisper's by default.

    Raises:
      ValueError: if a leaf matches no rule.
    """

    def choose(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = "/".join(str(getattr(k, "key", k)) for k in path)
        for pattern, spec in rules:
            if re.fullmatch(pattern, name):
                return NamedSharding(mesh, spec)
        raise ValueError(f"no sharding rule for parameter {name} of shape {leaf.shape}.")

    return jax.tree_util.tree_map_with_path(choose, base)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def by_batch(mesh: Mesh) -> NamedSharding:
    """Axis 0 is split over "data"."""
    return NamedSharding(mesh, P("data"))


def put_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """A process's rows of a batch as global arrays split over "data"."""
    place = lambda x: jax.make_array_from_process_local_data(by_batch(mesh), np.asarray(x))
    return jax.tree.map(place, batch)
