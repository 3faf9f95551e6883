"""How many terms mined from parallel text a dictionary has.

    python -m benchmarks.glossary_precision ENGLISH.txt GERMAN.txt /usr/share/trans/de-en

The texts are parallel, a sentence a line; the dictionary is Ding's (Debian's trans-de-en). Terms that are the same in
both languages, names above all, are counted apart. A German term is found if one of the dictionary's has its stem.
"""

from pathlib import Path
import re
import sys

from jaxmoe.mt.glossary import german_stem, mine

NOTES = re.compile(r"\{[^}]*\}|\[[^\]]*\]|\([^)]*\)|<[^>]*>|/[^/]*/")


def read_ding(path: Path) -> dict[str, set[str]]:
    """English in small letters -> stems of its German."""
    found: dict[str, set[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        sides = line.split(" :: ")
        if line.startswith("#") or len(sides) != 2:
            continue
        for german, english in zip(*(side.split("|") for side in sides), strict=False):
            stems = {stem(word) for word in _words(german)}
            for word in _words(english):
                found.setdefault(word.lower(), set()).update(stems)
    return found


def _words(text: str) -> list[str]:
    return [NOTES.sub("", word).strip() for word in text.split(";")]


def stem(term: str) -> str:
    """Of each word."""
    return " ".join(map(german_stem, term.split()))


def main(english: str, german: str, dictionary: str) -> None:
    """Mines and prints the count, and what the dictionary has otherwise."""
    sides = (Path(path).read_text(encoding="utf-8").splitlines() for path in (english, german))
    terms, known = mine(zip(*sides, strict=True)), read_ding(Path(dictionary))
    others = [t for t in terms if t.english.lower() != t.german.lower()]
    listed = [t for t in others if t.english.lower() in known]
    right = [t for t in listed if stem(t.german) in known[t.english.lower()]]
    print(f"{len(terms)} terms, {len(terms) - len(others)} the same in both languages")
    print(f"{len(others)} others: the dictionary has the English of {len(listed)}, and the German of {len(right)}")
    print(", ".join(f"{t.english} = {t.german}" for t in listed if t not in right))


if __name__ == "__main__":
    main(*sys.argv[1:])
