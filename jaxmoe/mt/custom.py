"""What DeepL can be told of a corpus: glossary, translation memory, style rule, custom instructions.

DeepL trains no model for its users; this is the whole of its customisation. All of it comes from pairs of the train
split, without the sentences that validation and evaluation hold too: a translation memory returns what it has stored,
so that a test sentence in it is the answer.

FOLDER/glossary.tsv  English, German, and what speaks for each pair (glossary.py)
FOLDER/memory.tmx    the pairs, as TMX 1.4
FOLDER/style.json    rules and instructions, and the counts they come from
The files may be edited: the version is a hash of their content.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import hashlib
import json
from pathlib import Path
import re
from typing import Any
import xml.etree.ElementTree as ET

from jaxmoe.data import prepared
from jaxmoe.data.pairs import Pair, normalised
from jaxmoe.mt import glossary

MAX_INSTRUCTIONS, MAX_INSTRUCTION = 10, 300  # DeepL's limits: a request, characters
MAX_PHRASE_BYTES = 1024  # of a glossary's phrase
FILES = ("glossary.tsv", "memory.tmx", "style.json")
FORMAL = re.compile(r"(?<=[\w,] )(Sie|Ihnen|Ihr|Ihre|Ihrem|Ihren|Ihrer|Ihres)\b")
INFORMAL = re.compile(r"\b([Dd]u|[Dd]ich|[Dd]ir|[Dd]ein|[Dd]eine|[Dd]einem|[Dd]einen|[Dd]einer|[Dd]eines)\b")
_LANG = "{http://www.w3.org/XML/1998/namespace}lang"


@dataclasses.dataclass(frozen=True)
class Customisation:
    """The content of a folder."""

    glossary: dict[str, str]
    memory: list[Pair]
    rules: dict[str, dict[str, str]]  # DeepL's configured rules: group -> rule -> choice
    instructions: list[str]

    @property
    def version(self) -> str:
        """12 hexadecimal digits, equal for equal content."""
        content = json.dumps(dataclasses.astuple(self), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:12]


def build(
    folder: Path,
    train: Iterable[Pair],
    held: Iterable[Pair],
    *,
    instructions: Sequence[str],
    alpha: float,
    **mining: Any,
) -> dict[str, int]:
    """Write the folder's files from pairs of the train split and return counts.

    held: pairs of validation and evaluation; train pairs that share a sentence with them are left out.
    alpha, mining: see glossary.mine; alpha also decides whether du or Sie is a rule.
    Raises:
        ValueError: nothing is left of train, or DeepL would refuse an instruction.
    """
    check_instructions(instructions)
    distinct = list(dict.fromkeys(train))
    known = {normalised(side) for pair in held for side in pair}
    pairs = [pair for pair in distinct if not known & {normalised(side) for side in pair}]
    if not pairs:
        raise ValueError(
            f"there is nothing to customise with: {len(distinct)} train pairs with German, all of them also held out. "
            "Give the corpus translations, or run --phase=references."
        )
    terms = [t for t in glossary.mine(pairs, alpha=alpha, **mining) if normalised(t.english) not in known]
    rules, evidence = address(pairs, alpha)
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["english\tgerman\ttogether\tsentences\tp"]
    lines += [f"{t.english}\t{t.german}\t{t.together}\t{t.sentences}\t{t.p:.1e}" for t in terms]
    (folder / "glossary.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "memory.tmx").write_bytes(to_tmx(pairs))
    style = {"rules": rules, "instructions": list(instructions), "evidence": evidence}
    (folder / "style.json").write_text(json.dumps(style, indent=1, ensure_ascii=False), encoding="utf-8")
    return {
        "train_pairs": len(distinct),
        "left_out_as_held_out": len(distinct) - len(pairs),
        "memory": len(pairs),
        "glossary": len(terms),
    }


def address(pairs: Sequence[Pair], alpha: float) -> tuple[dict[str, dict[str, str]], dict[str, int]]:
    """The rule for du or Sie, where the corpus prefers one of them (sign test), and the sentences with either."""
    from scipy.stats import binomtest

    formal = sum(bool(FORMAL.search(german)) for _, german in pairs)
    informal = sum(bool(INFORMAL.search(german)) for _, german in pairs)
    rules: dict[str, dict[str, str]] = {}
    if formal + informal and binomtest(formal, formal + informal).pvalue < alpha:
        choice = "use_formal_tone" if formal > informal else "use_casual_tone"
        rules = {"style_and_tone": {"formality": choice}}
    return rules, {"formal": formal, "informal": informal}


def read(folder: Path) -> Customisation:
    """The folder's content.

    Raises:
        ValueError: a file is missing, cannot be read, or holds what DeepL would refuse; the message names the line.
    """
    if missing := [name for name in FILES if not (folder / name).exists()]:
        raise ValueError(f"{folder} has no {' and no '.join(missing)}; run --phase=customize --force.")
    style = json.loads((folder / "style.json").read_text(encoding="utf-8"))
    check_instructions(style["instructions"])
    return Customisation(
        read_glossary(folder / "glossary.tsv"), from_tmx(folder / "memory.tmx"), style["rules"], style["instructions"]
    )


def read_glossary(path: Path) -> dict[str, str]:
    """English -> German of the first two columns; the first line names the columns."""
    terms: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()[1:], 2):
        columns = [column.strip() for column in line.split("\t")]
        if len(columns) < 2 or not all(columns[:2]):
            raise ValueError(f"{path}:{number}: expected English, a tab and German; found {line[:60]!r}.")
        if columns[0] in terms:
            raise ValueError(f"{path}:{number}: {columns[0]!r} is there already; DeepL takes a phrase once.")
        if max(len(column.encode()) for column in columns[:2]) > MAX_PHRASE_BYTES:
            raise ValueError(f"{path}:{number}: over {MAX_PHRASE_BYTES} bytes; shorten it.")
        terms[columns[0]] = columns[1]
    return terms


def check_instructions(instructions: Sequence[str]) -> None:
    """Raises: ValueError where DeepL would refuse them."""
    if len(instructions) > MAX_INSTRUCTIONS:
        raise ValueError(f"config.custom.instructions: {len(instructions)}, DeepL takes {MAX_INSTRUCTIONS}.")
    for number, text in enumerate(instructions, 1):
        if not 0 < len(text) <= MAX_INSTRUCTION:
            raise ValueError(
                f"config.custom.instructions: number {number} has {len(text)} characters, DeepL takes 1 to "
                f"{MAX_INSTRUCTION}."
            )


def held_out(workdir: Path) -> dict[str, Pair]:
    """Utterance id -> (English, German) of validation and evaluation."""
    return {
        row["id"]: (row["text"], row["translation"])
        for split in prepared.splits(workdir)
        if split != "train"
        for row in prepared.open_metadata(workdir, split)
    }


def check_leakage(custom: Customisation, held: Mapping[str, Pair], folder: Path) -> None:
    """Refuse a customisation that holds a sentence it will be tested on.

    held: utterance id -> pair.
    Raises:
        ValueError: naming file, entry and utterance, and no sentence.
    """
    known: dict[str, str] = {}
    for id_, pair in held.items():
        for side in pair:
            known.setdefault(normalised(side), id_)
    known.pop("", None)
    found = [
        ("memory.tmx, segment", n, known.get(normalised(side))) for n, p in enumerate(custom.memory, 1) for side in p
    ]
    found += [
        ("glossary.tsv, line", n, known.get(normalised(side)))
        for n, term in enumerate(custom.glossary.items(), 2)
        for side in term
    ]
    found += [
        ("style.json, instruction", n, next((i for sentence, i in known.items() if _quotes(text, sentence)), None))
        for n, text in enumerate(custom.instructions, 1)
    ]
    leaks = [(where, number, id_) for where, number, id_ in found if id_]
    if leaks:
        where, number, id_ = leaks[0]
        raise ValueError(
            f"{folder}: {len(leaks)} entries are sentences of the held-out splits, the first is {where} {number} "
            f"(utterance {id_}); expected none, or the evaluation would measure what DeepL was told. Take them out, or "
            "run --phase=customize --force, which leaves them out."
        )


def _quotes(text: str, sentence: str) -> bool:
    return len(sentence.split()) > 2 and f" {sentence} " in f" {normalised(text)} "


def to_tmx(pairs: Iterable[Pair]) -> bytes:
    """Pairs as TMX 1.4, the format of translation memories."""
    root = ET.Element("tmx", version="1.4")
    header = dict(creationtool="jaxmoe", creationtoolversion="1", segtype="sentence", adminlang="en", srclang="en")
    ET.SubElement(root, "header", header | {"o-tmf": "jaxmoe", "datatype": "plaintext"})
    body = ET.SubElement(root, "body")
    for pair in pairs:
        unit = ET.SubElement(body, "tu")
        for language, text in zip(("en", "de"), pair, strict=True):
            ET.SubElement(ET.SubElement(unit, "tuv", {_LANG: language}), "seg").text = text
    ET.indent(root, " ")
    return ET.tostring(root, encoding="utf-8", xml_declaration=True)


def from_tmx(path: Path) -> list[Pair]:
    """Pairs of a TMX file. Raises: ValueError naming the segment that is no pair of English and German."""
    try:
        root = ET.parse(path).getroot()
    except ET.ParseError as error:
        raise ValueError(f"{path}: not TMX ({error}); run --phase=customize --force.") from None
    pairs = []
    for number, unit in enumerate(root.iter("tu"), 1):
        sides = {variant.get(_LANG): variant.findtext("seg") or "" for variant in unit.iter("tuv")}
        if not (sides.get("en") and sides.get("de")):
            raise ValueError(
                f"{path}: segment {number} has no English and German side; found {sorted(map(str, sides))}."
            )
        pairs.append((sides["en"], sides["de"]))
    return pairs
