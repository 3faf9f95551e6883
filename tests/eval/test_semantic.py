"""Translations judged by outside models: kept while they hold, told apart from "not run"."""

import hashlib
import json
from pathlib import Path
import sys

import numpy as np
import pytest

from configs import quickstart
from jaxmoe.eval import semantic
from jaxmoe.eval.run import write_about, write_lines
from jaxmoe.eval.semantic import Segment
from jaxmoe.eval.systems import NotRun
from jaxmoe.report.read import read_evaluation

WORDS = "das boot ist blau und alt der garten war im winter still".split()
SEGMENTS = [
    Segment("the boat is blue", "das boot ist blau", "das boot ist blau"),
    Segment("the garden was quiet", "das boot war alt", "der garten war still"),
    Segment("a winter", "", "im winter"),
]
# Takes comet-score's options and writes its JSON: the share of the reference's words that the translation has.
PROGRAM = """
import argparse, json
parser = argparse.ArgumentParser()
for name in ("-s", "-t", "-r", "--to_json", "--model"):
    parser.add_argument(name, required=True)
a = parser.parse_args()
s, t, r = (open(path, encoding="utf-8").read().splitlines() for path in (a.s, a.t, a.r))
assert len(s) == len(t) == len(r)
rows = [{"src": x, "mt": y, "ref": z, "COMET": len({*y.split()} & {*z.split()}) / len(z.split())}
        for x, y, z in zip(s, t, r)]
json.dump({a.t: rows}, open(a.to_json, "w"))
print("asked for", len(rows))
"""


@pytest.fixture
def command(tmp_path: Path) -> str:
    program = tmp_path / "judge.py"
    program.write_text(PROGRAM)
    return f"'{sys.executable}' '{program}' --model any"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small BERT of random weights with mean pooling, saved as sentence-transformers does."""
    transformers = pytest.importorskip("transformers")
    from sentence_transformers import SentenceTransformer, models

    folder = tmp_path_factory.mktemp("encoder")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    config = transformers.BertConfig(
        vocab_size=5 + len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    transformers.set_seed(0)
    transformers.BertModel(config).save_pretrained(folder / "bert")
    bert = models.Transformer(str(folder / "bert"))
    SentenceTransformer(modules=[bert, models.Pooling(32)]).save(str(folder / "st"))
    return str(folder / "st")


def write_system(folder: Path, key: str, translations: list[str]) -> None:
    rows = [
        {
            **{"id": f"u{i}", "reference": s.source, "translation": text, "translation_reference": s.reference},
            **{"hypothesis": s.source, "flags": [], "speaker": "a", "transcript": "", "translation_origin": "corpus"},
            **{name: "" for name in ("etiology", "severity", "sex", "language", "channel", "prompt", "category")},
            **{"prompt_seen": False, "duration_s": 1.0, "simulated": False},
        }
        for i, (s, text) in enumerate(zip(SEGMENTS, translations, strict=True))
    ]
    write_lines(folder / key / "hypotheses.jsonl", rows)
    sha256 = hashlib.sha256((folder / key / "hypotheses.jsonl").read_bytes()).hexdigest()
    about = {"key": key, "name": key, "kind": "asr+mt", "status": "run", "utterances": len(rows), "sha256": sha256}
    write_about(folder / key, about)


def asked(config_comet: str = "", config_semscore: str = "") -> object:
    config = quickstart.get_config()
    config.evaluate.comet, config.evaluate.semscore = config_comet, config_semscore
    return config


def test_comet_gives_a_score_to_each_segment_in_order(command: str) -> None:
    assert semantic.comet(command, SEGMENTS) == [1.0, 0.25, 0.0]


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ("/nowhere/comet-score", "cannot be started: .*No such file"),
        ("'comet-score", "cannot be started: No closing quotation"),
        (f"'{sys.executable}' -c 'import sys; sys.exit(\"no such model\")'", "no such model"),
        (f"'{sys.executable}' -c 'print(1)'", "ended with 0: 1"),  # no file was written
    ],
)
def test_a_program_that_fails_is_not_run_and_says_why(broken: str, expected: str) -> None:
    with pytest.raises(NotRun, match=expected):
        semantic.comet(broken, SEGMENTS)


def test_semscore_is_the_cosine_of_mean_pooled_embeddings(encoder: str) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = (cls.from_pretrained(encoder) for cls in (AutoTokenizer, AutoModel))

    def embed(text: str) -> np.ndarray:
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0).numpy()

    expected = []
    for segment in SEGMENTS:
        a, b = embed(segment.translation), embed(segment.reference)
        expected.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    found = semantic.semscore(encoder, SEGMENTS)
    np.testing.assert_allclose(found, expected, atol=1e-5)  # float32, and padding in a batch
    assert found[0] == pytest.approx(1.0, abs=1e-5) and found[1] < 0.999


def test_a_model_that_is_missing_is_not_run(tmp_path: Path) -> None:
    with pytest.raises(NotRun, match=r"config\.evaluate\.semscore"):
        semantic.semscore(str(tmp_path / "none"), SEGMENTS)


def test_scores_are_kept_until_the_translations_change(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_system(tmp_path, "moe", [s.translation for s in SEGMENTS])
    write_system(tmp_path, "lora", [s.reference for s in SEGMENTS])
    write_about(tmp_path / "salmonn", {"key": "salmonn", "name": "s", "kind": "e2e", "status": "not run: no weights"})
    config = asked(command)
    semantic.judge(config, tmp_path)
    assert "5 translations of 2 systems" in capsys.readouterr().out  # one segment is the same in both
    runs = {run.key: run for run in read_evaluation(tmp_path)[1] if run.was_run}
    assert runs["moe"].judged["comet"]["scores"] == {"u0": 1.0, "u1": 0.25, "u2": 0.0}
    assert set(runs["lora"].judged["comet"]["scores"].values()) == {1.0}
    semantic.judge(config, tmp_path)
    assert "judged" not in capsys.readouterr().out

    write_system(tmp_path, "moe", ["das boot", "garten", "winter"])
    assert semantic.read(tmp_path / "moe", json.loads((tmp_path / "moe" / "system.json").read_text())["sha256"]) == {}
    semantic.judge(config, tmp_path)
    assert "3 translations of 1 systems" in capsys.readouterr().out
    semantic.judge(asked(), tmp_path)  # asked for no longer
    assert not list(tmp_path.glob("*/semantic.json"))


def test_a_judge_that_cannot_run_is_named_and_nothing_else_is_lost(
    tmp_path: Path, encoder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_system(tmp_path, "moe", [s.translation for s in SEGMENTS])
    semantic.judge(asked("/nowhere/comet-score", encoder), tmp_path)
    assert "comet: not run: config.evaluate.comet" in capsys.readouterr().out
    assert set(read_evaluation(tmp_path)[1][3].judged) == {"semscore"}
