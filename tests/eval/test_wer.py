"""WER and CER against jiwer, an independent scorer of the SAP rules, and cases worked by hand."""

import jiwer
import numpy as np
import pytest

from jaxmoe.eval import wer

WORDS = "a cat sat on the red mat with my old dog and his blue hat".split()


def _pairs(number: int, seed: int) -> list[tuple[str, str]]:
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(number):
        reference = list(rng.choice(WORDS, rng.integers(1, 12)))
        hypothesis = [w if rng.random() > 0.3 else str(rng.choice(WORDS)) for w in reference]
        hypothesis = [w for w in hypothesis if rng.random() > 0.15]
        if rng.random() < 0.3:
            hypothesis += list(rng.choice(WORDS, rng.integers(1, 15)))
        out.append((" ".join(reference), " ".join(hypothesis)))
    return out


def test_whisper_regime_agrees_with_jiwer():
    references, hypotheses = (list(x) for x in zip(*_pairs(300, 0), strict=True))
    counts = wer.score(references, hypotheses)
    words = jiwer.process_words(references, hypotheses)
    assert counts.wer == pytest.approx(100 * words.wer, abs=1e-9)
    assert counts.cer == pytest.approx(100 * jiwer.cer(references, hypotheses), abs=1e-9)
    assert counts.errors.sum() == words.substitutions + words.deletions + words.insertions
    for u in range(50):  # per utterance too, not only in the sum
        one = jiwer.process_words(references[u], hypotheses[u])
        assert counts.errors[u] == one.substitutions + one.deletions + one.insertions
        assert counts.substitutions[u] + counts.deletions[u] + counts.insertions[u] == counts.errors[u]


def test_normaliser_forgives_spelling_numbers_and_case():
    counts = wer.score(["Mr. Smith's colour is twenty-three!"], ["mister smith is color is 23"])
    assert counts.wer == 0


def test_empty_reference_counts_insertions_and_no_rate():
    counts = wer.score([""], ["thank you"])
    assert (counts.errors[0], counts.words[0]) == (2, 0)
    assert np.isnan(counts.wer)


@pytest.mark.parametrize(
    ("transcript", "hypothesis", "errors", "words"),
    [
        ("turn on the light", "turn off the light", 1, 4),
        ("[Say this:] turn on the light", "turn on the light", 0, 4),  # the prompt is not speech
        ("prompt read aloud] turn on the light", "turn on the light", 0, 4),  # its bracket never opened
        ("#dis turn on the light", "turn on the light", 0, 4),
        ("(turn) turn on (the) the light", "turn on the light", 0, 4),  # without disfluencies
        ("(turn) turn on (the) the light", "turn turn on the the light", 0, 6),  # with them
        ("(turn) turn on (the) the light", "turn turn on the light", 1, 6),  # 1/6 beats 1/4
        ("turn on", "please would you turn on the big light", 2, 2),  # six insertions clipped to two words
        ("{g:turn} on the light", "turn on the light", 0, 4),
        ("{ss: turn} on the light", "turn on the light", 0, 4),
        ("turn {u:} the light", "turn off the light", 0, 4),  # an unknown word matches any word
        ("turn {u:} the light", "turn the light", 1, 4),  # but it was said, so leaving it out is an error
        ("{w:3} light", "turn on the light", 0, 4),
        ("{w:3} light", "turn on light", 1, 4),
        ("turn on (cs: go on) the light", "turn on go on the light", 0, 6),  # the interviewer is audible
        ("my T V is on", "my TV is on", 0, 4),
        ("my ~T ~V is on", "my T.V. is on", 0, 4),
        ("plan ~B works", "plan B works", 0, 3),
    ],
)
def test_sap_by_hand(transcript: str, hypothesis: str, errors: float, words: float):
    counts = wer.score([transcript], [hypothesis], "sap")
    assert (counts.errors[0], counts.words[0]) == (errors, words)


def test_sap_averages_equally_good_references():
    # "(so) on" against "": 2/2 and 1/1 are equal, so (2 + 1) / 2 errors in (2 + 1) / 2 words.
    counts = wer.score(["(so) on"], [""], "sap")
    assert (counts.errors[0], counts.words[0]) == (1.5, 1.5)


def test_sap_characters_choose_their_own_reference():
    counts = wer.score(["(so) on"], ["son"], "sap")
    # words: one substitution in "on" (1/1) or two edits in "so on" (2/2): equal, averaged
    assert (counts.errors[0], counts.words[0]) == (1.5, 1.5)
    # characters: "so on" -> "son" is 2 of 5, "on" -> "son" is 1 of 2
    assert (counts.char_errors[0], counts.chars[0]) == (2, 5)


def test_unknown_words_take_the_place_that_costs_least():
    assert wer.fill_unknown(["a", wer.UNKNOWN, "c"], ["a", "b", "c"]) == ["a", "b", "c"]
    assert wer.fill_unknown([wer.UNKNOWN, "c"], ["c"]) == [wer.UNKNOWN, "c"]


def _independent_sap(transcript: list[tuple[str, bool]], hypothesis: str) -> tuple[float, float]:
    """The rules anew for words that are fluent or not, with jiwer's distance."""
    best: list[tuple[float, float]] = []
    for keep in (True, False):
        reference = " ".join(w for w, fluent in transcript if fluent or keep)
        if not reference:
            continue
        out = jiwer.process_words(reference, hypothesis)
        length = len(reference.split())
        best.append((min(out.substitutions + out.deletions + out.insertions, length), length))
    rates = [e / n for e, n in best]
    chosen = [b for b, r in zip(best, rates, strict=True) if r == min(rates)]
    return sum(e for e, _ in chosen) / len(chosen), sum(n for _, n in chosen) / len(chosen)


def test_sap_agrees_with_an_independent_scorer():
    rng = np.random.default_rng(1)
    for reference, hypothesis in _pairs(500, 2):
        words = [(w, bool(rng.random() > 0.25)) for w in reference.split()]
        marked = " ".join(w if fluent else f"({w})" for w, fluent in words)
        counts = wer.score([f"[read:] {marked}"], [hypothesis], "sap")
        assert (counts.errors[0], counts.words[0]) == _independent_sap(words, hypothesis), marked


def test_errors_name_the_remedy():
    with pytest.raises(ValueError, match=r"expected one of .*sap.*whisper"):
        wer.score(["a"], ["a"], "kaldi")
    with pytest.raises(ValueError, match="1 references but 2 hypotheses"):
        wer.score(["a"], ["a", "b"])
