"""Training that ends when validation no longer improves, and keeps the best, also across a kill."""

from collections.abc import Callable
import json
from pathlib import Path
from typing import Any

from jaxmoe.checkpoint import Checkpointer


class EarlyStopping:
    """`evaluate` and `enough` of train.loop.fit: keeps the best parameters, stops `patience` saves after them.

    The step-0 parameters count as the first: training that only harms leaves what there was.

    Args:
      folder: of the phase; its metrics.jsonl is what is remembered when a run resumes.
      loss: params -> figure on validation data, the lower the better.
      keep: called with parameters that are better than all before.
    """

    def __init__(self, folder: Path, patience: int, loss: Callable[[Any], float], keep: Callable[[Any], None]) -> None:
        self.folder, self.patience, self.loss, self.keep = folder, patience, loss, keep
        self.seen: list[float] = []

    def begin(self, params: Any) -> None:
        """Evaluates the parameters of step 0, or reads what an interrupted run saw up to its last checkpoint."""
        first, lines = self.folder / "untrained.json", self.folder / "metrics.jsonl"
        checkpointer = Checkpointer(self.folder / "checkpoints")
        step = checkpointer.latest_step()
        checkpointer.close()
        if step is None or not first.exists():
            self(params)
            first.write_text(json.dumps(self.seen[0]))
            return
        whole = [json.loads(line) for line in lines.read_text().splitlines(True) if line.endswith("\n")]
        later = [x["validation_loss"] for x in whole if x["step"] <= step and "validation_loss" in x]
        self.seen = [json.loads(first.read_text()), *later]

    def __call__(self, params: Any) -> dict[str, float]:
        value = self.loss(params)
        if not self.seen or value < min(self.seen):
            self.keep(params)
        self.seen.append(value)
        return {"validation_loss": value}

    def enough(self) -> bool:
        """Whether the last `patience` figures were no better than the best before them."""
        return len(self.seen) - 1 - self.seen.index(min(self.seen)) >= self.patience
