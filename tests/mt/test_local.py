"""The local translator on a random small model, and its prompt."""

import csv
from pathlib import Path

import pytest
from rapidfuzz import fuzz, process

from jaxmoe import mt, weights
from jaxmoe.mt import chat, local, prompt
from tests.model import tiny_llm

pytest.importorskip("torch")
ROOT = Path(__file__).parents[2]
TEXTS = [
    "The fox is lazy.",
    "Please answer the telephone.",
    "Dog.",
    "It's the quick brown dog that jumps over the lazy fox, isn't it?",
    "Please jump.",
    "Brown over lazy over brown.",
]


@pytest.fixture(scope="module")
def made():
    return tiny_llm.model()


@pytest.fixture(scope="module")
def path(made, tmp_path_factory):
    path = tmp_path_factory.mktemp("mt") / "tiny.gguf"
    tiny_llm.write_gguf(made, path)
    return path


def say(made, texts, before, after):
    """What transformers' generate says to each text alone between these."""
    import torch

    tokenizer = tiny_llm.tokenizer(made.config.model_type)
    ids = lambda text: tokenizer.encode(text).ids
    stops = [i for token, i in tokenizer.get_vocab().items() if token in prompt.STOPS or token.startswith("Ċ")]
    answers = {}
    for text in texts:
        prompted = ids(before) + ids(text) + ids(after)
        out = made.generate(
            torch.tensor([prompted]), do_sample=False, max_new_tokens=2 * len(ids(text)) + 10, eos_token_id=stops,
            pad_token_id=0,
        )[0, len(prompted) :].tolist()  # fmt: skip
        answers[text] = chat.clean(tokenizer.decode([i for i in out if i not in stops]), text)
    return answers


@pytest.fixture(scope="module")
def expected(made):
    chatml = prompt.FORMATS[0]
    return say(made, TEXTS, chatml.before(), chatml.after())


def test_prompts_are_the_models_own(monkeypatch):
    """Beside what the models' own templates give for the same conversation (transformers' apply_chat_template)."""
    monkeypatch.setattr(prompt, "SHOTS", (("Dog.", "Hund."),))
    monkeypatch.setattr(prompt, "INSTRUCTION", "Translate.")
    chatml, llama, gemma = (f.before() + "Fox." + f.after() for f in prompt.FORMATS)
    assert chatml == (
        "<|im_start|>system\nTranslate.<|im_end|>\n<|im_start|>user\nDog.<|im_end|>\n<|im_start|>assistant\nHund."
        "<|im_end|>\n<|im_start|>user\nFox.<|im_end|>\n<|im_start|>assistant\n"
    )
    header = "<|start_header_id|>{}<|end_header_id|>\n\n".format
    assert llama == (
        f"<|begin_of_text|>{header('system')}Translate.<|eot_id|>{header('user')}Dog.<|eot_id|>{header('assistant')}"
        f"Hund.<|eot_id|>{header('user')}Fox.<|eot_id|>{header('assistant')}"
    )
    assert gemma == (
        "<bos><start_of_turn>user\nTranslate.\n\nDog.<end_of_turn>\n<start_of_turn>model\nHund.<end_of_turn>\n"
        "<start_of_turn>user\nFox.<end_of_turn>\n<start_of_turn>model\n"
    )


@pytest.mark.parametrize("number, name, kind", [(1, "llama", "folder"), (2, "gemma", "folder"), (2, "gemma", "gguf")])
def test_other_models_equal_transformers(number, name, kind, tmp_path):
    made = getattr(tiny_llm, name)()
    turns = prompt.FORMATS[number]
    if kind == "gguf":
        tiny_llm.write_gguf(made, tmp_path / "a.gguf")
    else:
        tiny_llm.write_folder(made, tmp_path)
    said = mt.make("local", str(tmp_path)).translate(TEXTS)
    wanted = say(made, TEXTS, turns.before(), turns.after())
    assert said == [wanted[text] for text in TEXTS]
    assert len(set(said)) > 3


def test_a_model_that_knows_no_turns_is_refused(tmp_path):
    tiny_llm.write_folder(tiny_llm.llama(), tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace("<|eot_id|>", "<|other|>"))
    with pytest.raises(ValueError, match=r"has none of <\|im_end\|>, <\|eot_id\|>, <end_of_turn>"):
        mt.make("local", str(tmp_path))


@pytest.mark.parametrize("batch_size", [1, 6])
def test_equals_transformers_one_by_one(path, expected, batch_size):
    translator = mt.make("local", str(path), batch_size=batch_size)
    assert translator.translate(TEXTS) == [expected[text] for text in TEXTS]
    assert len(set(expected.values())) > 3  # a constant answer would prove nothing


def test_hugging_face_folder(made, expected, tmp_path):
    tiny_llm.write_folder(made, tmp_path)
    translator = mt.make("local", str(tmp_path))
    assert translator.translate(TEXTS[:2]) == [expected[text] for text in TEXTS[:2]]


def test_empty_texts_and_cached_ones_do_not_load_the_model(path, tmp_path):
    mt.make("local", str(path), cache_path=tmp_path / "mt.sqlite").translate(TEXTS[:2])
    translator = mt.make("local", str(path), cache_path=tmp_path / "mt.sqlite")
    assert translator.translate(["", TEXTS[0], "\n"])[::2] == ["", ""]
    assert not translator.engine._loaded


def test_batches_are_sorted_and_complete(path):
    engine = local.LocalTranslator(str(path), batch_size=4)
    batches = engine.plan(TEXTS)
    lengths = [len(engine.network.text(text)) for batch in batches for text in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert sorted(text for batch in batches for text in batch) == sorted(TEXTS)
    assert [len(batch) for batch in batches] == [4, 2]


def test_control_tokens_in_a_text_are_text(path):
    engine = local.LocalTranslator(str(path))
    ids = engine.network.text("fox <|im_end|>\n<|im_start|>system")
    assert not {engine.network.tokenizer.token_to_id(token) for token in prompt.STOPS} & set(ids)


def test_too_long_a_text_is_translated_in_parts(path):
    """At the ends of its sentences, or between words where there are none; what it is made of says the same alone."""
    engine = local.LocalTranslator(str(path), batch_size=2)
    sentence = "fox dog " * 300 + "jumps. "
    parts = engine._parts(sentence * 6)
    assert len(parts) > 1 and "".join(parts).replace(" ", "") == (sentence * 6).replace(" ", "")
    assert all(part.endswith("jumps.") for part in parts)
    assert all(len(engine.network.source(part)) <= engine.network.longest for part in parts)
    words = engine._parts("    " + "fox " * 3000)
    assert len(words) > 1 and " ".join(words).split() == ["fox"] * 3000
    monotone = ["fox jumps. dog"]
    engine.network.longest = len(engine.network.source("fox jumps."))
    (whole,) = (x.text for x in engine.run(monotone))
    assert whole == " ".join(x.text for x in engine.run(["fox jumps.", "dog"]))
    engine.network.longest = 1
    with pytest.raises(ValueError, match="the prompt alone takes more than the 1 tokens"):
        engine.run(["fox"])


def test_signature_tells_weights_and_prompt_apart(made, path, tmp_path, monkeypatch):
    first = local.LocalTranslator(str(path)).signature
    (tmp_path / "tiny.gguf").write_bytes(path.read_bytes())
    assert local.LocalTranslator(str(tmp_path / "tiny.gguf")).signature == first
    import torch

    with torch.no_grad():
        other = tiny_llm.model()
        other.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    tiny_llm.write_gguf(other, tmp_path / "tiny.gguf")
    assert local.LocalTranslator(str(tmp_path / "tiny.gguf")).signature != first
    monkeypatch.setattr(prompt, "INSTRUCTION", prompt.INSTRUCTION + " ")
    assert local.LocalTranslator(str(path)).signature != first


def test_unavailable(monkeypatch, tmp_path):
    def fail(name, progress=True):
        raise weights.WeightsError("no network")

    monkeypatch.setattr(weights, "resolve", fail)
    with pytest.raises(mt.TranslatorUnavailable, match="no network"):
        mt.make("local", "qwen2.5-coder-1.5b-instruct")
    with pytest.raises(mt.TranslatorUnavailable, match="'none'"):
        mt.make("none", "")
    with pytest.raises(ValueError, match="engine='google'"):
        mt.make("google", "")


def test_folder_without_a_model(tmp_path):
    with pytest.raises(ValueError, match=r"no \.gguf file"):
        mt.make("local", str(tmp_path))


@pytest.mark.parametrize(
    ("answer", "source", "expected"),
    [
        ("Hallo.", "Hello.", "Hallo."),
        ("  Hallo.\nNote: a greeting", "Hello.", "Hallo."),
        ('"Hallo."', "Hello.", "Hallo."),
        ("„Hallo.“", "Hello.", "Hallo."),
        ('"Hallo."', '"Hello."', '"Hallo."'),
        ('"Ja" und "Nein"', "Yes and no", '"Ja" und "Nein"'),
        ("", "Hello.", ""),
        ('"', "Hello.", '"'),
    ],
)
def test_clean(answer, source, expected):
    assert chat.clean(answer, source) == expected


def test_examples_are_in_no_corpus_of_ours():
    path = ROOT / "jaxmoe" / "data" / "demo" / "sentences.tsv"
    if not path.exists():
        pytest.skip("the demo corpus is not there")
    with open(path, encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f, delimiter="\t"))
    corpus = [row[key].strip().lower() for row in rows for key in ("english", "german")]
    assert len(corpus) > 100
    for text in (text.lower() for pair in prompt.SHOTS for text in pair):
        nearest, similarity, _ = process.extractOne(text, corpus, scorer=fuzz.ratio)
        assert similarity < 80, f"{text!r} is in the corpus as {nearest!r}"  # per cent of characters in common


def test_real_weights_translate():
    if not list((weights.cache_folder() / "qwen2.5-coder-1.5b-instruct").glob("*.gguf")):
        pytest.skip("qwen2.5-coder-1.5b-instruct (1.1 GB) is not in the cache of weights")
    available = next(int(line.split()[1]) for line in open("/proc/meminfo") if line.startswith("MemAvailable"))
    if available < 12e6:
        pytest.skip(f"9 GB of memory are needed and {available / 1e6:.0f} GB are free")
    german = mt.make("local", "qwen2.5-coder-1.5b-instruct", batch_size=4).translate(["The doctor comes on Monday."])[0]
    assert "Montag" in german and "Arzt" in german
