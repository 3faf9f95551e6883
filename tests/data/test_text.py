"""Tokenizers of English-only and multilingual models against transformers' and the lists that CTranslate2 ships."""

import json
from pathlib import Path

import pytest
from transformers import WhisperTokenizer

from jaxmoe.data.text import EnglishNormalizer, Tokenizer
from tests.model.checkpoints import real_weights

TEXTS = [
    " And so, my fellow Americans: ask not what your country can do for you.",
    " Grüße aus Köln! Übermäßig viel Straßenlärm...",
    "no leading space, 1,234.56 units; it's 10% o'clock — “quoted” ♪ la la ♪",
    " 日本語 и русский \U0001f600\n\ttabs",
    "",
]


@pytest.fixture(scope="module", params=["tiny.en", "base"])
def model(request) -> tuple[Path, Tokenizer]:
    folder = real_weights(request.param)
    return folder, Tokenizer.from_folder(folder)


def test_text_round_trip_as_in_transformers(model):
    folder, tokenizer = model
    theirs = WhisperTokenizer(tokenizer_file=str(folder / "tokenizer.json"))
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids == theirs(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == text


def test_special_tokens(model):
    folder, tokenizer = model
    english = folder.name == "tiny.en"
    shift = 0 if english else 1
    assert tokenizer.is_multilingual is not english
    assert (tokenizer.eot, tokenizer.sot) == (50256 + shift, 50257 + shift)
    names = ("translate", "transcribe", "sot_lm", "sot_prev", "no_speech", "no_timestamps", "timestamp_begin")
    assert [getattr(tokenizer, n) for n in names] == list(range(50357 + shift, 50364 + shift))
    assert len(tokenizer.languages) == 99 and tokenizer.languages[:3] == ("en", "zh", "de")


def test_prompts(model):
    _, tokenizer = model
    if not tokenizer.is_multilingual:
        assert tokenizer.sot_sequence() == (50257, 50362)
        assert tokenizer.sot_sequence(timestamps=True) == (50257,)
        with pytest.raises(ValueError, match="English-only"):
            tokenizer.sot_sequence("de")
        with pytest.raises(ValueError, match="English-only"):
            tokenizer.sot_sequence(task="translate")
        return
    assert tokenizer.sot_sequence() == (50258, 50259, 50359, 50363)
    assert tokenizer.sot_sequence("de", "translate", timestamps=True) == (50258, 50261, 50358)
    with pytest.raises(ValueError, match="language='xx', expected one of en, zh"):
        tokenizer.sot_sequence("xx")
    with pytest.raises(ValueError, match="task='sing'"):
        tokenizer.sot_sequence(task="sing")


def test_suppressed_tokens_are_those_of_the_conversion(model):
    folder, tokenizer = model
    config = json.loads((folder / "config.json").read_text())  # transformers' generation_config.json, converted
    assert list(tokenizer.suppress_tokens) == config["suppress_ids"]
    assert list(tokenizer.suppress_begin) == config["suppress_ids_begin"]
    assert len(tokenizer.non_speech_tokens) == {"tiny.en": 84, "base": 82}[folder.name]


def test_special_tokens_in_a_transcript_are_text(model):
    _, tokenizer = model
    ids = tokenizer.encode(" she said <|endoftext|> aloud")
    assert max(ids) < tokenizer.eot
    assert tokenizer.decode(ids) == " she said <|endoftext|> aloud"


def test_decoding_leaves_special_tokens_out_or_names_them(model):
    _, tokenizer = model
    begin = tokenizer.timestamp_begin  # not in the older files
    ids = [*tokenizer.sot_sequence(timestamps=True), begin, *tokenizer.encode(" hi"), begin + 1500, tokenizer.eot]
    assert tokenizer.decode(ids) == " hi"
    assert tokenizer.decode(ids, skip_special=False).endswith("<|0.00|> hi<|30.00|><|endoftext|>")


def test_a_character_split_over_tokens_decodes_whole(model):
    _, tokenizer = model
    ids = tokenizer.encode(" \U0001f600")
    assert len(ids) > 1 and tokenizer.decode(ids, skip_special=False) == " \U0001f600"


def test_segments_by_timestamps(model):
    _, tokenizer = model
    at = lambda seconds: tokenizer.timestamp_begin + round(seconds / 0.02)
    one, two = tokenizer.encode(" one"), tokenizer.encode(" two words")
    split = lambda ids, **kw: tokenizer.decode_with_timestamps(ids, **kw)
    assert split([at(0), *one, at(1.5), at(2), *two, at(3.22), tokenizer.eot]) == [
        (0.0, 1.5, one),
        (2.0, pytest.approx(3.22), two),
    ]
    assert split([at(1), *one, at(4), at(4)]) == [(1.0, 4.0, one)]  # the audio goes on after 4 s
    assert split([*one, at(2), *two], duration_s=7.5) == [(0.0, 2.0, one), (2.0, 7.5, two)]
    assert split([at(1), *one, at(30)], duration_s=7.5) == [(1.0, 7.5, one)]  # an end past the audio
    assert split([at(5), *one, at(3)]) == [(5.0, 5.0, one)]  # never backwards
    assert split([tokenizer.eot]) == []


def large_v3(folder: Path) -> dict:
    """base's tokenizer.json with large-v3's hundredth language: every later id is one higher."""
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    added = content["added_tokens"]
    for token in added:
        token["id"] += token["id"] >= 50358
    yue = next(t for t in added if t["content"] == "<|su|>") | {"content": "<|yue|>", "id": 50358}
    content["added_tokens"] = sorted([*added, yue], key=lambda t: t["id"])
    content["post_processor"] = None  # names ids too, and is not used
    return content


def test_large_v3_has_a_hundred_languages(tmp_path):
    folder = real_weights("base")
    (tmp_path / "tokenizer.json").write_text(json.dumps(large_v3(folder)), "utf-8")
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert len(tokenizer.languages) == 100 and tokenizer.languages[-1] == "yue"
    assert tokenizer.sot_sequence("de") == (50258, 50261, 50360, 50364)
    assert tokenizer.timestamp_begin == 50365 and tokenizer.timestamp_begin + 1500 == 51865  # n_vocab 51866
    assert set(range(50359, 50364)) < set(tokenizer.suppress_tokens)


def test_older_files_of_transformers(model, tmp_path):
    """vocab.json, merges.txt and added_tokens.json instead of tokenizer.json."""
    folder, tokenizer = model
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    merges = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(content["model"]["vocab"]), "utf-8")
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), "utf-8")
    added = {t["content"]: t["id"] for t in content["added_tokens"] if t["content"] != "<|endoftext|>"}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added), "utf-8")
    older = Tokenizer.from_folder(tmp_path)
    assert older.sot_sequence() == tokenizer.sot_sequence() and older.eot == tokenizer.eot
    assert older.suppress_tokens == tokenizer.suppress_tokens
    for text in TEXTS:
        assert older.encode(text) == tokenizer.encode(text)
        assert older.decode(older.encode(text)) == text


def test_a_folder_without_a_whisper_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="found nothing, expected tokenizer"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    plain = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(plain))
    with pytest.raises(ValueError, match=r"no token <\|endoftext\|>: it is not Whisper's"):
        Tokenizer.from_folder(tmp_path)


def test_english_normalizer():
    normalize = EnglishNormalizer()
    assert normalize("Um, Mr. Brown's colour -- [laughs] twenty-one GREY cats!") == (
        "mister brown is color 21 gray cats"
    )
    assert normalize("  ") == ""
