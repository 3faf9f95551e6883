"""Per-utterance statistics of every system and the scores of any subset of its utterances."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from jaxmoe.eval import bleu, bootstrap, semantic, wer
from jaxmoe.report.read import SystemRun, Utterances

METRICS = ("wer", "cer", "bleu", "chrf", *semantic.JUDGES)


@dataclasses.dataclass(frozen=True)
class Scores:
    """What is known of one system's output; None where a measure does not apply."""

    counts: wer.Counts | None
    bleu: np.ndarray | None  # [U, 10], zero rows where there is no reference translation
    chrf: np.ndarray | None  # [U, 18]
    regimes: dict[str, dict[str, float]]  # {"whisper": {"wer", "cer"}, "sap": ...}
    semantic: dict[str, np.ndarray]  # "comet", "semscore": [U, 2] of score and 1, zeros where it was not judged

    def statistics(self, metric: str) -> np.ndarray | None:
        """Summable statistics [U, K] of one of METRICS."""
        if metric in semantic.JUDGES:
            return self.semantic.get(metric)
        if metric == "bleu":
            return self.bleu
        if metric == "chrf":
            return self.chrf
        if self.counts is None:
            return None
        if metric == "cer":
            return np.stack([self.counts.char_errors, self.counts.chars], axis=1)
        return np.stack([self.counts.errors, self.counts.words], axis=1)

    def function(self, metric: str) -> bootstrap.Score:
        """The score of summed statistics of a metric, in per cent."""
        if metric in semantic.JUDGES:
            return wer.rate  # the mean, in per cent
        return {"wer": wer.rate, "cer": wer.rate, "bleu": bleu.bleu, "chrf": bleu.chrf}[metric]

    def summary(self, chosen: np.ndarray) -> dict[str, float | None]:
        """METRICS of the chosen utterances (bool [U])."""
        out: dict[str, float | None] = {}
        for metric in METRICS:
            statistics = self.statistics(metric)
            if statistics is None or not statistics[chosen].any():
                out[metric] = None
            else:
                out[metric] = float(self.function(metric)(statistics[chosen].sum(axis=0)))
        return out

    def intervals(
        self,
        chosen: np.ndarray,
        index: np.ndarray,
        speakers: int,
        drawing: dict[str, int],
        metrics: Sequence[str] = ("wer", "bleu"),
    ) -> dict[str, tuple[float, float] | None]:
        """95 % intervals of these metrics over the speakers of the chosen utterances."""
        out: dict[str, tuple[float, float] | None] = {}
        for metric in metrics:
            statistics = self.statistics(metric)
            if statistics is None:
                out[metric] = None
                continue
            sums = bootstrap.speaker_sums(statistics[chosen], index[chosen], speakers)
            present = np.unique(index[chosen])
            out[metric] = bootstrap.interval(sums[present], self.function(metric), **drawing)
        return out

    @property
    def edits(self) -> dict[str, float] | None:
        """Substitutions, deletions and insertions in per cent of the reference words."""
        if self.counts is None:
            return None
        words = max(float(self.counts.words.sum()), 1.0)
        return {
            name: 100.0 * float(getattr(self.counts, name).sum()) / words
            for name in ("substitutions", "deletions", "insertions")
        }


def score_systems(utterances: Utterances, runs: list[SystemRun], regime: str) -> dict[str, Scores]:
    """Scores of every system that was run, by key; `regime` is the one of WER and CER."""
    translations = _translation_statistics(utterances, [run for run in runs if any(run.translations)])
    # `sap` reads an annotation's markup, `whisper` has one plain reference.
    plain = utterances["reference"]
    annotated = [t or r for t, r in zip(utterances["transcript"], plain, strict=True)]
    said = {name: annotated if name == "sap" else plain for name in wer.REGIMES}
    out = {}
    for run in runs:
        if not run.was_run:
            continue
        counts, regimes = None, {}
        # kind "mt" was given the reference; an end-to-end system may write no English at all.
        if run.kind == "asr+mt" or (run.kind == "e2e" and any(run.hypotheses)):
            for name, references in said.items():
                found = wer.score(references, run.hypotheses, name)
                regimes[name] = {"wer": found.wer, "cer": found.cer}
                counts = found if name == regime else counts
        bleu_table, chrf_table = translations.get(run.key, (None, None))
        judged = {name: _mean_statistics(found["scores"], utterances.ids) for name, found in run.judged.items()}
        out[run.key] = Scores(counts, bleu_table, chrf_table, regimes, judged)
    return out


def _mean_statistics(scores: dict[str, float], ids: Sequence[str]) -> np.ndarray:
    """[U, 2]: the score and 1, or zeros where there is none."""
    return np.array([(scores[id_], 1.0) if id_ in scores else (0.0, 0.0) for id_ in ids])


def _translation_statistics(utterances: Utterances, runs: list[SystemRun]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """BLEU's and chrF's statistics by key; utterances without a reference count for nothing."""
    references = utterances["translation_reference"]
    has_reference = np.array([bool(text) for text in references])
    if not has_reference.any():
        return {}
    tables = []
    for metric in ("bleu", "chrf"):
        found = bleu.statistics(metric, [run.translations for run in runs], references)
        tables.append([table * has_reference[:, None] for table in found])
    return {run.key: (b, c) for run, b, c in zip(runs, *tables, strict=True)}
