"""Fine-tuning a small language model on pairs: its loss against transformers', what it learns, where it stops."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from jaxmoe import mt
from jaxmoe.data import lineage, pairs, prepared
from jaxmoe.eval import translators
from jaxmoe.model import lora
from jaxmoe.mt import local, prompt
from jaxmoe.phases import mt as phase
from jaxmoe.train import loop
from tests import stored
from tests.model import tiny_llm

pytest.importorskip("torch")
PAIRS = [
    ("The fox is quick.", "Der Fuchs ist schnell."),
    ("The dog is lazy.", "Der Hund ist faul."),
    ("Please answer the telephone.", "Bitte geh ans Telefon."),
    ("It's ringing.", "Es läutet."),
    ("The dog jumps.", "Der Hund springt."),
    ("The fox jumps over the dog.", "Der Fuchs springt über den Hund."),
]


@pytest.fixture(autouse=True)
def short_prompt(monkeypatch):
    """One example: ten are over a thousand tokens of this tokenizer."""
    monkeypatch.setattr(prompt, "SHOTS", (("Dog.", "Hund."),))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("mt") / "tiny.gguf"
    tiny_llm.write_gguf(tiny_llm.model(), path)
    return path


def make_config(path, **changes):
    c = quickstart.get_config("smoke").unlock()
    c.mt.engine, c.mt.model, c.mesh.data = "local", str(path), 1
    c.mt_tuning.update(steps=6, batch_size=2, lr=2e-2, rank=4, warmup=1, log_every=1, save_every=2, **changes)
    return c


def seen(folder):
    """Validation figures of a training, that of step 0 first."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["validation_nll"] for line in lines if "validation_nll" in line]


def test_loss_is_transformers_on_the_german_tokens(path):
    import torch

    network = local.open_network(path)
    base, token_nll = network.trainable()
    encoded = pairs.encode(PAIRS, network.source, network.target, limit=64)
    (batch,) = pairs.all_batches(encoded, batch_size=8)
    shapes = lora.linear_shapes(base["params"], phase.TARGETS)
    bank = lora.init_bank(jax.random.key(0), shapes, num_experts=1, rank=2)
    total, count = phase.make_loss(token_nll, alpha=4.0)(bank, base, batch)
    made, want, tokens = tiny_llm.model(), 0.0, 0
    for source, target in encoded:
        ids = torch.tensor([network._around.before + source + target])
        labels = torch.where(torch.arange(ids.shape[1]) < ids.shape[1] - len(target), -100, ids)
        with torch.no_grad():
            want += made(ids, labels=labels).loss.item() * len(target)
        tokens += len(target)
    assert count == tokens
    np.testing.assert_allclose(total, want, rtol=1e-4)


def test_it_learns_and_the_tuned_translator_says_so(path, tmp_path, monkeypatch):
    monkeypatch.setattr(translators, "cache_folder", lambda: tmp_path)
    config = make_config(path, patience=9)
    file = phase.tune(config, tmp_path, str(path), PAIRS, PAIRS)
    first, *later = seen(tmp_path)
    assert min(later) < first - 0.5
    plain, tuned = mt.make("local", str(path)), mt.make("local", str(path), adapters=file)
    assert tuned.signature != plain.signature and tuned.name.startswith("fine-tuned")
    texts = [english for english, _ in PAIRS]
    assert tuned.translate(texts) != plain.translate(texts)
    assert tuned.translate(texts) == evaluated(config, tmp_path, file).translate(texts)


def evaluated(config, folder, file):
    """The translator of the rows mt-local-tuned and moe-custom-mt of a run with these adapters."""
    (folder / "run" / "mt").mkdir(parents=True)
    (folder / "run" / "mt" / local.ADAPTERS).write_bytes(file.read_bytes())
    tuned, custom = (make(config, folder / "run", None) for make in (translators.tuned, translators.customised))
    assert tuned.signature == custom.signature and tuned.name == "fine-tuned local MT (tiny)"
    return tuned


def test_killed_and_continued_is_the_same(path, tmp_path, monkeypatch):
    whole = phase.tune(make_config(path, patience=9), tmp_path / "whole", str(path), PAIRS, PAIRS[:2])
    real, calls = loop.save_params, []

    def die(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:  # at the second validation
            raise KeyboardInterrupt
        real(*args, **kwargs)

    monkeypatch.setattr(loop, "save_params", die)
    with pytest.raises(KeyboardInterrupt):
        phase.tune(make_config(path, patience=9), tmp_path / "parts", str(path), PAIRS, PAIRS[:2])
    monkeypatch.setattr(loop, "save_params", real)
    parts = phase.tune(make_config(path, patience=9), tmp_path / "parts", str(path), PAIRS, PAIRS[:2])
    assert parts.read_bytes() == whole.read_bytes()


def test_it_stops_when_validation_gets_worse_and_keeps_the_best(path, tmp_path):
    """Validation pairs whose German is another: what training teaches is wrong for them."""
    shuffled = [(english, german[::-1]) for english, german in PAIRS]
    config = make_config(path, patience=1)
    config.mt_tuning.update(steps=40, lr=5e-2)
    file = phase.tune(config, tmp_path, str(path), PAIRS, shuffled)
    steps = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    figures = seen(tmp_path)
    assert 0 < steps < 40 and figures[-1] > min(figures)
    phase.tune(config, tmp_path, str(path), PAIRS, shuffled)  # asked again, it does not go on
    assert seen(tmp_path) == figures
    network = local.open_network(path)
    base, token_nll = network.trainable()
    columns, scales = lora.load(file, local.digest(path))
    batch = pairs.all_batches(pairs.encode(shuffled, network.source, network.target, 64), 8)[0]
    nll = token_nll(base, lora.nested(columns), jnp.tile(scales, (8, 1)), batch)
    np.testing.assert_allclose((nll * batch.weights).sum() / batch.weights.sum(), min(figures), rtol=1e-4)


def test_adapters_of_another_model_are_refused(path, tmp_path):
    bank = {"blocks/mlp/up": {"a": np.zeros((3, 1, 64, 2), np.float32), "b": np.zeros((3, 1, 2, 96), np.float32)}}
    lora.save(tmp_path / "a.safetensors", bank, alpha=1.0, base="ab" * 32)
    with pytest.raises(ValueError, match="train again"):
        mt.make("local", str(path), adapters=tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"no adapters")
    with pytest.raises(ValueError, match="cannot be read as adapters"):
        mt.make("local", str(path), adapters=tmp_path / "b.safetensors")


def test_the_run_knows_whose_sentences_the_translator_has_seen(path, tmp_path):
    known = dict.fromkeys(prepared.STRINGS, "") | dict.fromkeys(prepared.BOOLEANS, False)
    rows = [
        known | {"id": str(n), "speaker": "ab"[n % 2], "text": english, "translation": german, "duration_s": 0.5}
        for n, (english, german) in enumerate(PAIRS)
    ]
    rows = [row | {"audio": np.zeros(8000, np.int16)} for row in rows]
    silent = rows[0] | {"id": "9", "speaker": "without German", "translation": ""}
    validation = [row | {"speaker": "c", "text": f"{row['text']} Yes."} for row in rows[:2]]
    stored.write(tmp_path / "corpus", {"train": [*rows, silent], "validation": validation, "evaluation": rows[:1]})
    config = make_config(path, patience=9)
    config.mt_tuning.steps = 1
    more = tmp_path / "more.tsv"
    more.write_text("A sentence.\tEin Satz.\n")
    config.mt_tuning.pairs = str(more)
    phase.run(config, tmp_path)
    assert not phase.news(config, tmp_path)
    more.write_text("Another sentence.\tEin anderer Satz.\n")
    assert "--phase=mt --force" in phase.news(config, tmp_path)
    seen = {who: lineage.trained_on(tmp_path, who) for who in ("a", "b", "c", "without German")}
    assert seen == {"a": [tmp_path / "mt"], "b": [tmp_path / "mt"], "c": [tmp_path / "mt"], "without German": []}
