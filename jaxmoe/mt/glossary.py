"""Term pairs mined from parallel text: nouns whose German the corpus settles, and chance cannot explain.

A glossary forces its German on every sentence, so it should hold terms, not every word. A pair (English words, German
noun) gets in if
  1. it occurs together in more sentence pairs than chance explains: Fisher's exact test, one-sided, Bonferroni over
     every pair that could have been tested,
  2. neither has a better partner (each other's best, as in competitive linking),
  3. the German stands in nearly all sentence pairs that hold the English.
German verbs and adjectives are left out: a glossary would force one inflected form of them.

Source: Moore (2004), On log-likelihood-ratios and the significance of rare events, section 3 (Fisher's test for word
association in parallel text); Melamed (2000), Models of translational equivalence among words (competitive linking).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
import dataclasses
import re

import numpy as np

MAX_WORDS = 3  # of a term
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_UMLAUTS = str.maketrans("äöü", "aou")

Pair = tuple[str, str]
Stems = tuple[str, ...]
Forms = dict[Stems, str]  # terms of one sentence -> as written


@dataclasses.dataclass(frozen=True)
class Term:
    """A pair of the glossary and what speaks for it."""

    english: str
    german: str
    together: int  # sentence pairs with both
    sentences: int  # sentence pairs with the English
    p: float  # of Fisher's test, times the number of pairs that could be tested


def mine(pairs: Iterable[Pair], *, alpha: float = 0.01, min_count: int = 3, min_share: float = 0.8) -> list[Term]:
    """Terms of distinct sentence pairs (English, German), most certain first.

    alpha: chance that the glossary holds any pair by accident. min_count: sentence pairs with both sides.
    min_share: of the sentence pairs with the English, how many must have the German.
    """
    from scipy.stats import hypergeom

    # One prompt read by a hundred speakers is one observation.
    distinct = list(dict.fromkeys(pairs))
    nouns = german_nouns(german for _, german in distinct)
    rows = [(_english_terms(english), _german_terms(german, nouns)) for english, german in distinct]
    left = Counter(term for row, _ in rows for term in row)
    right = Counter(term for _, row in rows for term in row)
    left, right = (Counter({k: n for k, n in c.items() if n >= min_count}) for c in (left, right))
    both = Counter((e, g) for en, de in rows for e in en if e in left for g in de if g in right)
    found = [(e, g) for (e, g), n in both.items() if n >= min_count]
    if not found:
        return []
    counts = np.array([(both[x], left[x[0]], right[x[1]]) for x in found])
    # Fisher's test is conditional on the marginal counts, so that selecting by them first is fair.
    tests = len(left) * len(right)
    p = hypergeom.sf(counts[:, 0] - 1, len(rows), counts[:, 1], counts[:, 2]) * tests
    order = sorted(range(len(found)), key=lambda i: (p[i], -len(found[i][0]), -len(found[i][1]), found[i]))
    chosen = _mutual_best([(found[i], p[i]) for i in order if p[i] <= alpha])
    settled = [(pair, value) for pair, value in chosen if both[pair] >= min_share * left[pair[0]]]
    return [_term(pair, value, rows, both[pair], left[pair[0]]) for pair, value in settled]


def german_nouns(sentences: Iterable[str]) -> set[str]:
    """Words written with a capital wherever they do not begin a sentence."""
    capital, small = Counter[str](), Counter[str]()
    for sentence in sentences:
        for word in _WORD.findall(sentence)[1:]:
            (capital if word[0].isupper() else small)[word.lower()] += 1
    # Sie, Ihr, Ihnen are capitals too, and small elsewhere; min_count and the test decide on the rest.
    return {word for word, n in capital.items() if n > small[word]} - _POLITE


_POLITE = {"sie", "ihr", "ihnen", "ihre", "ihren", "ihrem", "ihrer", "ihres"}


def _english_terms(sentence: str) -> Forms:
    """Runs of words that neither begin nor end with a function word."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    words = [word.replace("’", "'") for word in _WORD.findall(sentence)]
    content = [len(w) > 1 and "'" not in w and w.lower() not in ENGLISH_STOP_WORDS for w in words]
    return {
        tuple(_english_stem(w.lower()) for w in words[start:end]): " ".join(words[start:end])
        for start, end in _runs(len(words))
        if content[start] and content[end - 1]
    }


def _german_terms(sentence: str, nouns: set[str]) -> Forms:
    """Runs of nouns."""
    words = _WORD.findall(sentence)
    noun = [w[0].isupper() and w.lower() in nouns for w in words]
    return {
        tuple(map(german_stem, words[start:end])): " ".join(words[start:end])
        for start, end in _runs(len(words))
        if all(noun[start:end])
    }


def _runs(length: int) -> list[tuple[int, int]]:
    """(start, end) of all runs of up to MAX_WORDS."""
    return [(i, j) for i in range(length) for j in range(i + 1, min(i + MAX_WORDS, length) + 1)]


def _english_stem(word: str) -> str:
    """Without the plural's s."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def german_stem(noun: str) -> str:
    """Without endings of case and number: Savoy (2006), Light stemming approaches, the minimal German stemmer."""
    stem = noun.lower().translate(_UMLAUTS)
    for ending in ("ern", "en", "er", "es", "em", "e", "n", "s", "r"):
        if stem.endswith(ending) and len(stem) - len(ending) >= 3:
            return stem[: -len(ending)]
    return stem


def _mutual_best(ranked: Sequence[tuple[tuple[Stems, Stems], float]]) -> list[tuple[tuple[Stems, Stems], float]]:
    """Pairs, best first, neither side of which is in a better one."""
    taken_left: set[Stems] = set()
    taken_right: set[Stems] = set()
    out = []
    for (english, german), value in ranked:
        if english not in taken_left and german not in taken_right:
            out.append(((english, german), value))
        taken_left.add(english)
        taken_right.add(german)
    return out


def _term(
    pair: tuple[Stems, Stems], p: float, rows: Sequence[tuple[Forms, Forms]], together: int, sentences: int
) -> Term:
    """The pair as it is most often written: the English, then the German that goes with that form of it."""
    written = [(en[pair[0]], de[pair[1]]) for en, de in rows if pair[0] in en and pair[1] in de]
    forms = Counter(english for english, _ in written)
    # "Blood pressure" at the start of a sentence is "blood pressure"; "Monday" never is.
    lower = [form for form in forms if form == form.lower()]
    english = max(lower or forms, key=lambda form: (forms[form], form))
    german = Counter(de for en, de in written if en == english)
    return Term(english, max(german, key=lambda form: (german[form], -len(form), form)), together, sentences, float(p))
