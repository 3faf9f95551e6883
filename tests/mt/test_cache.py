"""The cache before every engine."""

import multiprocessing
import sqlite3

import pytest

from jaxmoe.mt import Translation
from jaxmoe.mt.cache import Cache
from jaxmoe.mt.cached import CachedTranslator


class Counting:
    """An engine that is its own record; `fails_at` breaks off at that call."""

    name, signature, billed = "counting", "counting:1", False

    def __init__(self, fails_at=None):
        self.batches, self.fails_at = [], fails_at

    def plan(self, texts):
        return [list(texts[at : at + 4]) for at in range(0, len(texts), 4)]

    def run(self, batch):
        if len(self.batches) == self.fails_at:
            raise RuntimeError("broken")
        self.batches.append(list(batch))
        return [Translation(text.upper(), "upper") for text in batch]


TEXTS = [f"text {i}" for i in range(10)]


def test_distinct_texts_once_in_order(tmp_path):
    engine = Counting()
    translator = CachedTranslator(engine, Cache(tmp_path / "a.sqlite"))
    assert translator.translate(["b", "a", "b", "", "\t", " a"]) == ["B", "A", "B", "", "", "A"]
    assert engine.batches == [["b", "a"]]
    assert translator.translate(["a", "c"]) == ["A", "C"]
    assert engine.batches == [["b", "a"], ["c"]]
    assert translator.translate([]) == []


def test_finished_batches_survive_a_failure(tmp_path):
    with pytest.raises(RuntimeError, match="broken"):
        CachedTranslator(Counting(fails_at=2), Cache(tmp_path / "a.sqlite")).translate(TEXTS)
    engine = Counting()
    translator = CachedTranslator(engine, Cache(tmp_path / "a.sqlite"))
    assert translator.translate(TEXTS) == [text.upper() for text in TEXTS]
    assert engine.batches == [TEXTS[8:]]


def test_another_signature_shares_nothing(tmp_path):
    cache = Cache(tmp_path / "a.sqlite")
    cache.put("one", [("a", Translation("eins", "m"))])
    assert cache.get("two", ["a"]) == {}
    assert cache.get("one", ["a", "b"]) == {"a": "eins"}


def test_first_answer_stays():
    cache = Cache(None)
    cache.put("s", [("a", Translation("eins", "m", 1))])
    cache.put("s", [("a", Translation("zwei", "m", 1)), ("b", Translation("drei", "m", 5))])
    assert cache.get("s", ["a", "b"]) == {"a": "eins", "b": "drei"}
    assert cache.billed_characters() == 6


def test_many_keys_and_odd_texts():
    cache = Cache(None)
    texts = [f"{i} ' \" ; -- \0 é 𝄞" for i in range(2000)]
    cache.put("s", [(text, Translation(text[::-1], "m")) for text in texts])
    assert cache.get("s", texts) == {text: text[::-1] for text in texts}


def test_no_database(tmp_path):
    (tmp_path / "a.sqlite").write_text("this is a note, and no database at all; it is long enough to be looked at")
    with pytest.raises(ValueError, match=r"a\.sqlite.*Move it away"):
        Cache(tmp_path / "a.sqlite")


def _write(path, start):
    cache = Cache(path)
    for i in range(100):
        cache.put("s", [(f"{start} {i}", Translation("x", "m", 1)), (f"both {i}", Translation(str(start), "m", 1))])


def test_two_processes_write(tmp_path):
    context = multiprocessing.get_context("spawn")
    path = tmp_path / "a.sqlite"
    workers = [context.Process(target=_write, args=(path, start)) for start in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert Cache(path).billed_characters() == 300


def test_model_and_time_are_recorded(tmp_path):
    CachedTranslator(Counting(), Cache(tmp_path / "a.sqlite")).translate(["a"])
    row = (
        sqlite3.connect(tmp_path / "a.sqlite").execute("SELECT model, signature, created FROM translations").fetchone()
    )
    assert row[:2] == ("upper", "counting:1")
    assert row[2] > 1e9
