"""What SALMONN trains on: each utterance with a task, its prompt, and what should be said.

Every row of a batch draws its task and the wording of its prompt from the seed and the step alone, so that a resumed
run repeats exactly.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses

import numpy as np

from jaxmoe.data.audio import N_SAMPLES
from jaxmoe.data.batches import bucket_sizes
from jaxmoe.model.salmonn import Prompted

SPEECH = "<SpeechHere>"
BUCKETS = 3  # padded sizes of latents; each costs one compilation
# task -> wordings; the first is the one of evaluation. The two first are bytedance/SALMONN's, prompts/test_prompt.json;
# it has none for training on German.
PROMPTS = {
    "translation": (
        "<Speech><SpeechHere></Speech> Listen to the speech and translate it into German.",
        "<Speech><SpeechHere></Speech> What does the speaker say? Answer in German.",
        "<Speech><SpeechHere></Speech> Please put the speech into German.",
    ),
    "asr": (
        "<Speech><SpeechHere></Speech> Recognize the speech and give me the transcription.",
        "<Speech><SpeechHere></Speech> Write down what is said.",
        "<Speech><SpeechHere></Speech> Can you transcribe the speech?",
    ),
}


@dataclasses.dataclass(frozen=True)
class Wrapping:
    """How a language model is spoken to: tokens of a text, and what stands around the prompt and the answer."""

    encode: Callable[[str], list[int]]
    template: str  # "USER: {}\nASSISTANT:"
    begin: tuple[int, ...]  # the token that begins a text, where there is one
    end: int  # the token that ends an answer

    def around(self, prompt: str) -> tuple[list[int], list[int]]:
        """Tokens before and after the speech; the two halves are tokenised apart."""
        before, after = self.template.format(prompt).split(SPEECH)
        return [*self.begin, *self.encode(before)], self.encode(after)


@dataclasses.dataclass(frozen=True)
class Spoken:
    """An utterance: latents [S', E] or samples [n] when they are wanted, their number, and targets by task."""

    latents: Callable[[], np.ndarray] | None
    samples: Callable[[], np.ndarray] | None
    positions: int
    targets: dict[str, list[int]]
    speaker: str = ""


class PromptedSource:
    """Batch number -> Prompted of numpy arrays: random access, so that Grain can prefetch and resume.

    Args:
      utterances: what to draw from; each has at least one task.
      translation_share: how often an utterance that has both tasks is translated rather than transcribed.
      steps: how many batches there are.
    """

    def __init__(
        self,
        utterances: Sequence[Spoken],
        wrapping: Wrapping,
        *,
        batch_size: int,
        steps: int,
        seed: int,
        translation_share: float,
    ):
        self.utterances, self.wrapping = utterances, wrapping
        self.batch_size, self.steps, self.seed, self.share = batch_size, steps, seed, translation_share
        lengths = np.array([u.positions for u in utterances])
        self.sizes = bucket_sizes(lengths, 50, most=BUCKETS) if utterances[0].latents else np.zeros(len(lengths), int)
        longest = np.array([max(map(len, u.targets.values())) for u in utterances])
        self.target_sizes = {size: -(-longest[self.sizes == size].max() // 8) * 8 for size in np.unique(self.sizes)}

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Prompted:
        per_epoch = max(len(self.utterances) // self.batch_size, 1)
        epoch, number = divmod(int(step), per_epoch)
        picked = self._plan(epoch)[number]
        rng = np.random.default_rng([self.seed, epoch, number])
        rows = []
        for i in picked:
            targets = self.utterances[i].targets
            task = "translation" if rng.random() < self.share else "asr"
            task = task if task in targets else next(iter(targets))
            rows.append((self.utterances[i], PROMPTS[task][rng.integers(len(PROMPTS[task]))], targets[task]))
        target_size = max(self.target_sizes[size] for size in self.sizes[picked])
        return collate(rows, self.wrapping, int(self.sizes[picked].max()), int(target_size))

    def _plan(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch: a shuffle, sorted stably by size and cut."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.utterances))
        order = np.resize(order, max(len(order) // self.batch_size, 1) * self.batch_size)
        batches = order[np.argsort(self.sizes[order], kind="stable")].reshape(-1, self.batch_size)
        return [batches[i] for i in rng.permutation(len(batches))]


def every_utterance(
    utterances: Sequence[Spoken], wrapping: Wrapping, batch_size: int, task: str
) -> Iterator[Prompted]:
    """Each utterance once, with its target of `task`, or the one it has, and the wording of evaluation.

    All batches are of one shape: the last is filled up with rows whose targets weigh nothing.
    """
    size = int(bucket_sizes(np.array([u.positions for u in utterances]), 50, most=1)[0]) if utterances[0].latents else 0
    chosen = [(u, task if task in u.targets else next(iter(u.targets))) for u in utterances]
    rows = [(u, PROMPTS[t][0], u.targets[t]) for u, t in chosen]
    target_size = -(-max(len(target) for _, _, target in rows) // 8) * 8
    for start in range(0, len(rows), batch_size):
        picked = np.arange(start, start + batch_size)
        batch = collate([rows[i % len(rows)] for i in picked], wrapping, size, target_size)
        yield batch.replace(weights=batch.weights * (picked < len(rows))[:, None])


def collate(
    rows: Sequence[tuple[Spoken, str, Sequence[int]]], wrapping: Wrapping, size: int, target_size: int
) -> Prompted:
    """One batch of (utterance, prompt, target), latents padded to `size` positions, targets to `target_size` tokens."""
    around = [wrapping.around(prompt) for _, prompt, _ in rows]
    longest = max(len(a) for p in PROMPTS.values() for _, a in map(wrapping.around, p))
    b, shape = len(rows), (len(rows), target_size)
    after, after_mask = np.full((b, longest), wrapping.end, np.int32), np.zeros((b, longest), bool)
    targets, weights = np.full(shape, wrapping.end, np.int32), np.zeros(shape, np.float32)
    for i, ((_, tail), (_, _, target)) in enumerate(zip(around, rows, strict=True)):
        after[i, longest - len(tail) :], after_mask[i, longest - len(tail) :] = tail, True
        targets[i, : len(target)], weights[i, : len(target)] = target, 1.0
    speech = heard = audio = padding = None
    if size:
        latents = [u.latents() for u, _, _ in rows if u.latents]
        speech, heard = np.zeros((b, size, latents[0].shape[1]), np.float32), np.zeros((b, size), bool)
        for i, h in enumerate(latents):
            speech[i, : len(h)], heard[i, : len(h)] = h, True
    if rows[0][0].samples is not None:
        audio, padding = np.zeros((b, N_SAMPLES), np.float32), np.ones((b, N_SAMPLES), bool)
        for i, x in enumerate(u.samples() for u, _, _ in rows if u.samples):
            audio[i, : len(x)], padding[i, : len(x)] = x[:N_SAMPLES], False
    before = np.array([head for head, _ in around], np.int32)
    return Prompted(speech, heard, audio, padding, before, after, after_mask, targets, weights)
