"""Phase cascade on a small model: lists, refreshes, resuming, and fields that do not go together."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from jaxmoe import sharding, stages
from jaxmoe.data.batches import BatchSource, iterate
from jaxmoe.eval import systems
from jaxmoe.eval.run import split_clips
from jaxmoe.phases import cascade
from jaxmoe.system import load_system
from jaxmoe.train import loop, optimizer, risk
from jaxmoe.train import state as states
from jaxmoe.train.setup import Backbone
from tests import tiny
from tests.phases import spoken


@dataclasses.dataclass(frozen=True)
class Letters:
    """The vocabulary of tests.tiny: 256 letters, then the special tokens."""

    eot: int = 256
    sot: int = 257
    no_timestamps: int = 258
    no_speech: int = 259
    timestamp_begin: int = 260
    suppress_tokens: tuple[int, ...] = ()
    suppress_begin: tuple[int, ...] = ()

    def sot_sequence(self, language="en", task="transcribe", timestamps=False):
        if language != "en":
            raise ValueError("English-only")
        return (self.sot, self.no_timestamps)

    def decode(self, ids):
        return "".join(chr(ord("a") + i % 26) for i in ids)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    mesh = sharding.make_mesh(1)
    utterances = tiny.make_utterances(tmp_path_factory.mktemp("embeddings"))
    rng = np.random.default_rng(0)
    german = ["".join(map(chr, rng.integers(97, 123, 12))) for _ in range(len(utterances))]
    base, model = tiny.make_base(), tiny.make_model()
    base = jax.device_put(base, sharding.base_shardings(base, mesh))
    utterances = dataclasses.replace(utterances, translations=german)
    return Backbone("tiny", mesh, base, model, Letters()), utterances, tiny.make_params(model, base)


def lister(setting, source, translate=lambda texts: [text[::-1] for text in texts]):
    return cascade.Lister(setting[0], source, translate, n=3, refresh=2, metric="chrf")


def test_lists_are_of_the_model_at_its_last_refresh(setting):
    _, utterances, params = setting
    source = BatchSource(utterances, batch_size=4, steps=3, seed=0)
    other = jax.tree.map(lambda x: -3.0 * x, params)
    at = lambda step, params: SimpleNamespace(step=jnp.int32(step), params=params)
    lists, unrefreshed, refreshed = (lister(setting, source) for _ in range(3))
    first = lists(at(0, params), source[0]).nbest
    assert (first.weights.sum(-1) > 0).all() and first.costs.min() >= 0 and first.costs.max() <= 1
    assert len({tuple(row) for row in first.targets[0].tolist()}) == 3  # three texts

    second = lists(at(1, other), source[1]).nbest  # still of the parameters at step 0
    unrefreshed(at(0, params), source[0])
    for a, b in zip(jax.tree.leaves(second), jax.tree.leaves(unrefreshed(at(1, params), source[1]).nbest), strict=True):
        np.testing.assert_array_equal(a, b)
    third, anew = lists(at(2, other), source[2]).nbest, refreshed(at(2, params), source[2]).nbest
    assert third.targets.shape != anew.targets.shape or (third.targets != anew.targets).any()


def test_a_refresh_asks_the_translator_once_and_each_text_has_its_own_cost(setting):
    backbone, utterances, params = setting
    source, asked = BatchSource(utterances, batch_size=4, steps=3, seed=0), []
    lists = lister(setting, source, lambda texts: asked.append(list(texts)) or [text[::-1] for text in texts])
    prompt, seen = len(backbone.tokenizer.sot_sequence()), []
    for step in range(3):
        batch = source[step]
        nbest = lists(SimpleNamespace(step=jnp.int32(step), params=params), batch).nbest
        for row, index in enumerate(batch.index):
            for tokens, weights, cost in zip(nbest.targets[row], nbest.weights[row], nbest.costs[row], strict=True):
                text = backbone.tokenizer.decode(tokens[weights > 0][:-1].tolist())  # without its end
                seen.append(text)
                want = risk.sentence_costs("chrf", [text[::-1]], [utterances.translations[index]])
                np.testing.assert_allclose(cost, want[0], atol=1e-6)
    assert [len(texts) for texts in asked] == [24, 12] and [text for texts in asked for text in texts] == seen
    assert nbest.weights[0, 0, : prompt - 1].sum() == 0


def test_killed_and_continued_is_the_same(setting, tmp_path):
    backbone, utterances, params = setting
    source = BatchSource(utterances, batch_size=4, steps=4, seed=0, buckets=1)

    def train(folder, steps):
        tx = optimizer.make_tx(
            optimizer.label(params, [r".*"]), lr=1e-2, steps=4, warmup=1, weight_decay=0.0, clip_norm=1.0
        )
        return loop.fit(
            cascade.make_step(backbone.model, tx, ce=0.1, balance=0.01),
            states.create(jax.tree.map(jnp.copy, params), tx, 0),
            backbone.base,
            iterate(source),
            folder=folder,
            steps=steps,
            mesh=backbone.mesh,
            log_every=2,
            save_every=2,
            prepare=lister(setting, source),
        )

    whole = train(tmp_path / "whole", 4)
    train(tmp_path / "parts", 2)
    parts = train(tmp_path / "parts", 4)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_behind_the_adapted_encoder_risk_goes_on_with_the_encoder(tmp_path, monkeypatch):
    small = {"steps": 3, "batch_size": 2, "log_every": 1, "save_every": 3, "warmup": 1}
    fields = {f"{phase}.{name}": value for phase in ("encoder", "cascade") for name, value in small.items()}
    config, workdir = spoken.make_run(tmp_path, **fields, **{"cascade.refresh": 1, "cascade.nbest": 3})
    config.evaluate.temperatures = (0.0,)
    heard = []
    backwards = SimpleNamespace(translate=lambda texts: heard.extend(texts) or [text[::-1] for text in texts])
    monkeypatch.setattr(cascade, "translator", lambda config: backwards)
    with pytest.raises(FileNotFoundError, match="needs --phase=encoder"):
        stages.run(config, workdir, "cascade")
    stages.run(config, workdir, "encoder")
    stages.run(config, workdir, "cascade")
    assert "And so my fellow Americans." in heard  # the lists are of what is in the recordings
    lines = [json.loads(line) for line in (workdir / "cascade/risk/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["nll"] < lines[0]["nll"] and lines[-1]["validation_nll"] > 0

    before, after = (load_system("", workdir, system=name) for name in ("moe-encoder", "moe-risk"))
    apart = spoken.apart(before, after)["blocks"]
    assert all(leaf > 0 for name in ("attn", "mlp1") for leaf in jax.tree.leaves(apart[name]))
    clips = split_clips(workdir, "evaluation")
    assert rows("moe-risk", config, workdir) == {clip.id: spoken.text(after, tmp_path / clip.id) for clip in clips}
    record = json.loads((workdir / "joint/phase.json").read_text())
    record["settings"]["joint"]["lr"] *= 2
    (workdir / "joint/phase.json").write_text(json.dumps(record))
    with pytest.raises(systems.NotRun, match="another mixture; run --phase=cascade again"):
        rows("moe-risk", config, workdir)
    with pytest.raises(ValueError, match=r"another mixture than .*joint holds; run --phase=cascade again"):
        load_system("", workdir, system="moe-risk")


def rows(key, config, workdir):
    """What a system's recogniser hears in the evaluation split."""
    part = systems.get(key).recogniser
    found = part.function()(config, workdir, part, split_clips(workdir, "evaluation"))
    return {row["id"]: row["hypothesis"] for batch in found for row in batch}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mode", "both", "English-only"),
        ("mode", "ristk", "expected one of"),
        ("cost", "wer", "expected one of chrf, bleu"),
        ("save_every", 7, "no multiple of refresh=10"),
    ],
)
def test_fields_that_do_not_go_together(setting, field, value, message):
    config = quickstart.get_config().unlock()
    config.cascade[field] = value
    with pytest.raises(ValueError, match=message):
        cascade.check(config, setting[0])
