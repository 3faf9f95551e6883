"""The one host loop: iterate, step, log, save, resume. It knows no loss."""

from collections.abc import Callable
import json
from pathlib import Path
import time
from typing import Any

import grain.python as grain
import jax
import numpy as np

from jaxmoe import sharding
from jaxmoe.checkpoint import Checkpointer, save_params
from jaxmoe.train.state import TrainState

Metrics = dict[str, jax.Array]
StepFn = Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]]


class MetricsWriter:
    """metrics.jsonl and TensorBoard events of one phase; lines after `step` are dropped when a run resumes there."""

    def __init__(self, folder: Path, step: int):
        from tensorboardX import SummaryWriter  # slow to import

        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        text = self.path.read_text() if self.path.exists() else ""
        whole = text.splitlines()[: text.count("\n")]  # a kill can leave half a line
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        self.lines = [json.loads(line) for line in kept]
        self.path.write_text("".join(line + "\n" for line in kept))
        self.events = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def of(self, name: str) -> list[float]:
        """The values of a figure so far."""
        return [line[name] for line in self.lines if name in line]

    def write(self, step: int, values: dict[str, Any]) -> None:
        self.lines.append({"step": step, **values})
        with self.path.open("a") as f:
            f.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            if isinstance(value, float):
                self.events.add_scalar(name, value, step)

    def close(self) -> None:
        self.events.close()


def _mean(recent: list[Metrics]) -> dict[str, Any]:
    """Metrics averaged over the steps since the last line: batches differ in length, and so in loss."""
    host = jax.device_get(recent)
    means = {k: np.mean([m[k] for m in host], axis=0) for k in host[0]}
    return {k: v.tolist() if v.ndim else float(v) for k, v in means.items()}


def _first_bad(recent: list[Metrics]) -> int:
    """Index of the first step whose loss is not finite."""
    return next(i for i, m in enumerate(recent) if not np.isfinite(m["loss"]))


def _since_lowest(values: list[float]) -> int:
    """How many values follow the lowest."""
    return len(values) - 1 - values.index(min(values))


def fit(
    step_fn: StepFn,
    state: TrainState,
    base: Any,
    batches: grain.DatasetIterator,
    *,
    folder: Path,
    steps: int,
    mesh: jax.sharding.Mesh,
    log_every: int,
    save_every: int,
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    select: str = "",
    patience: int = 0,
    watch: Callable[[dict[str, Any]], str | None] | None = None,
    prepare: Callable[[TrainState, Any], Any] = lambda state, batch: batch,
) -> TrainState:
    """Trains up to `steps`, continuing from the latest checkpoint in `folder`, and writes folder/params.

    Args:
      step_fn: pure (state, base, batch) -> (state, metrics); metrics hold "loss".
      state: the state at step 0; its buffers are donated.
      base: frozen parameters, already on the mesh; None for a phase that needs none.
      batches: the data, one batch a step; its position is saved with the state.
      evaluate: params -> figures on validation data, logged beside the losses of steps that are saved.
      select: the figure of `evaluate` whose lowest value decides what is kept in folder/best, those of step 0 included:
        training that only harms leaves what there was. "" keeps none.
      patience: saves without a lower `select` after which the training ends; 0 goes on.
      watch: what is logged -> a warning or None; it is shown and logged too.
      prepare: (state, batch) -> what the step reads in the batch's place, on the host.

    Raises:
      FloatingPointError: if the loss is not finite, naming the step.
    """
    from tqdm import tqdm

    whole = sharding.replicated(mesh)
    state = jax.device_put(state, whole)
    checkpointer = Checkpointer(folder / "checkpoints")
    if checkpointer.latest_step() is not None:
        state = checkpointer.restore(state, batches)
    start = int(state.step)
    jitted = jax.jit(step_fn, donate_argnums=0, out_shardings=(whole, whole))
    writer = MetricsWriter(folder, start)

    def judge(params: Any) -> dict[str, float]:
        figures = evaluate(params) if evaluate is not None else {}
        if select and figures[select] < min(writer.of(select), default=float("inf")):
            save_params(folder / "best", params)
        return figures

    if select and not writer.lines:
        writer.write(0, judge(state.params))
    began, seen, waited = time.perf_counter(), start, 0.0
    recent: list[Metrics] = []
    bar = tqdm(total=steps, initial=start, desc=folder.name, unit="step", mininterval=2.0)
    for number in range(start + 1, steps + 1):
        if patience and _since_lowest(writer.of(select)) >= patience:
            break
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        state, metrics = jitted(state, base, sharding.put_batch(prepare(state, batch), mesh))
        bar.update()
        recent.append(metrics)
        saved = number % save_every == 0 or number == steps
        if number % log_every == 0 or saved:
            values = _mean(recent)
            if not np.isfinite(values["loss"]):
                checkpointer.close()
                raise FloatingPointError(
                    f"{folder.name}: the loss is not finite at step {seen + 1 + _first_bad(recent)}; lower "
                    "the phase's lr or look at the batch that step read."
                )
            elapsed = time.perf_counter() - began
            values["steps_per_s"] = (number - seen) / max(elapsed, 1e-9)
            values["input_wait"] = waited / max(elapsed, 1e-9)  # share of the time that batches were waited for
            if saved:
                values.update(judge(state.params))
            if watch is not None and (warning := watch(values)):
                values["warning"] = warning
                bar.write(f"WARNING {folder.name}, step {number}: {warning}")
            writer.write(number, values)
            bar.set_postfix(loss=f"{values['loss']:.3f}")
            began, seen, waited, recent = time.perf_counter(), number, 0.0, []
        if saved:
            checkpointer.save(number, state, batches, {"phase": folder.name})
    bar.close()
    writer.close()
    checkpointer.close()
    save_params(folder / "params", state.params)
    return state
