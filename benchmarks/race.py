"""Programs that do the same work, timed in turn, and how what came out is printed: what the speed benchmarks share."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import statistics
import time
from typing import Any


@dataclasses.dataclass(frozen=True)
class Result:
    """One question's answer.

    Args:
      ours, theirs: seconds of each round.
      target: the ratio theirs / ours that is aimed at; None for a figure that only informs.
      work: what both do, and what came of it.
    """

    question: str
    peer: str
    ours: Sequence[float]
    theirs: Sequence[float]
    target: float | None
    work: str

    def row(self) -> str:
        """A row of the table: medians in seconds, their spread, the median ratio of a round."""
        ratios = [b / a for a, b in zip(self.ours, self.theirs, strict=True)]
        cell = lambda t: f"{statistics.median(t):.3g} ({min(t):.3g} to {max(t):.3g})"
        met = "missed" if statistics.median(ratios) < (self.target or 0.0) else "met"
        met = "" if self.target is None else f"{self.target:g}: {met}"
        cells = (self.question, self.peer, cell(self.ours), cell(self.theirs), cell(ratios), met, self.work)
        return f"| {' | '.join(cells)} |"


HEAD = """\
| question | peer | ours, s (spread) | peer, s (spread) | ratio (spread) | target | work |
|---|---|---|---|---|---|---|"""


def alternate(programs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each program in each round. A first one, in which programs compile and caches fill, does not count."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            program()
            times[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in times.items()}
