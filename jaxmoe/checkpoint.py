"""Checkpoints of a phase: state, data position and configuration as one Orbax composite. The only importer of Orbax."""

from pathlib import Path
from typing import Any

import grain.python as grain
import jax
import orbax.checkpoint as ocp

PyTree = Any


def describe(tree: PyTree) -> list[str]:
    """Path, shape and type of every leaf, one line each."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [f"{jax.tree_util.keystr(p)} {list(x.shape)} {x.dtype}" for p, x in leaves]


class Checkpointer:
    """Saves and restores under `folder`; a killed save leaves nothing that counts as a checkpoint."""

    def __init__(self, folder: Path, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self.manager = ocp.CheckpointManager(Path(folder).resolve(), options=options)

    def latest_step(self) -> int | None:
        return self.manager.latest_step()

    def save(self, step: int, state: PyTree, iterator: grain.DatasetIterator, meta: dict) -> None:
        """Writes in the background; `close` waits for it."""
        self.manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(state),
                data=grain.PyGrainCheckpointSave(iterator),
                meta=ocp.args.JsonSave({**meta, "tree": describe(state)}),
            ),
        )

    def restore(self, state: PyTree, iterator: grain.DatasetIterator | None = None) -> PyTree:
        """The latest state, laid out as `state`; moves `iterator` to where it was.

        Raises:
          FileNotFoundError: if there is no checkpoint.
          ValueError: if the trees differ, listing what is missing (-) and unexpected (+).
        """
        step = self.latest_step()
        if step is None:
            raise FileNotFoundError(f"{self.manager.directory}: no checkpoint.")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        self._check(step, state)
        restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
        items: dict[str, Any] = {
            "state": ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args)
        }
        if iterator is not None:
            items["data"] = grain.PyGrainCheckpointRestore(iterator)
        return self.manager.restore(step, args=ocp.args.Composite(**items))["state"]

    def _check(self, step: int, state: PyTree) -> None:
        meta = self.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        saved, wanted = set(meta["meta"]["tree"]), set(describe(state))
        if saved != wanted:
            missing = [f"  - {x}" for x in sorted(wanted - saved)[:20]]
            unexpected = [f"  + {x}" for x in sorted(saved - wanted)[:20]]
            raise ValueError(
                f"{self.manager.directory}/{step}: the checkpoint does not fit the configuration "
                "(- missing, + unexpected):\n" + "\n".join(missing + unexpected)
            )

    def close(self) -> None:
        self.manager.wait_until_finished()
        self.manager.close()


def save_params(folder: Path, params: PyTree) -> None:
    """Writes trained parameters alone, replacing what is there."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(Path(folder).resolve(), params, force=True)


def load_params(folder: Path, like: PyTree) -> PyTree:
    """Trained parameters laid out as `like` (arrays or shapes).

    Raises:
      FileNotFoundError: if `folder` holds none, saying which phase makes it.
    """
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no trained parameters; run --phase={folder.parent.name} first."
        )
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
    with ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(folder, item=abstract, restore_args=restore_args)
