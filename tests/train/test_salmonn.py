"""Training SALMONN: what moves and what does not, batches by seed and step, resumed as uninterrupted."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from jaxmoe import sharding
from jaxmoe.data.batches import iterate
from jaxmoe.data.prompted import PROMPTS, PromptedSource, Spoken, Wrapping, every_utterance
from jaxmoe.model.llm import LanguageModel, LanguageModelDimensions
from jaxmoe.model.qformer import Connector, QFormerDimensions
from jaxmoe.model.salmonn import Salmonn
from jaxmoe.model.whisper import Encoder
from jaxmoe.phases.salmonn import answer_nll, make_step
from jaxmoe.train import loop, optimizer, spelling
from jaxmoe.train import state as states
from jaxmoe.train.salmonn import make_wrapping
from tests import tiny

LLM = LanguageModelDimensions(260, 2, 32, 2, 1, 16, 64, 10_000.0, 1e-6, True, True)
WRAPPING = Wrapping(lambda text: [3 + b for b in text.encode()], "USER: {}\nASSISTANT:", (1,), 2)


@pytest.fixture(scope="module")
def setting():
    """Model, base, utterances: two have no German."""
    connector = Connector(32, QFormerDimensions(16, 2, 1, 32), window=17, stride=17)
    model = Salmonn(Encoder(tiny.DIMS), None, connector, LanguageModel(LLM, scan_layers=False), 2, 4.0)
    zeros = jnp.zeros((1, 2), jnp.int32)
    llm = jax.jit(model.llm.init)(jax.random.key(1), zeros, zeros, jnp.ones((1, 2), bool))["params"]
    base = {"whisper": tiny.make_base()["encoder"], "llm": llm}
    rng = np.random.default_rng(0)
    utterances = []
    for i in range(12):
        latents = rng.standard_normal((int(rng.integers(40, 100)), 32)).astype(np.float32)
        targets = {"translation": [70 + i, 80, 2], "asr": [90 + i, 2]}
        targets = {k: v for k, v in targets.items() if k == "asr" or i > 1}
        utterances.append(Spoken(lambda x=latents: x, None, len(latents), targets))
    return model, base, utterances


@pytest.mark.parametrize(
    ("vocabulary", "begin"), [(("<s>", "</s>"), (0,)), (("<s>", "<bos>", "</s>"), (1,)), (("</s>",), ())]
)
def test_a_text_begins_with_the_one_token_that_begins_texts(vocabulary, begin):
    tokenizer = Tokenizer(WordLevel({name: i for i, name in enumerate(vocabulary)}, unk_token="</s>"))
    assert make_wrapping(tokenizer, "{}", "</s>").begin == begin
    with pytest.raises(ValueError, match=r"config\.salmonn\.end='<eos>'"):
        make_wrapping(tokenizer, "{}", "<eos>")


def source_of(utterances, steps=8, share=0.5):
    return PromptedSource(utterances, WRAPPING, batch_size=4, steps=steps, seed=5, translation_share=share)


def make_tx(params):
    labels = optimizer.label(params, [r".*"])
    return optimizer.make_tx(labels, lr=1e-2, steps=8, warmup=1, weight_decay=0.01, clip_norm=1.0)


def test_batches_hold_what_was_drawn(setting):
    utterances = setting[2]
    source = source_of(utterances)
    seen = set()
    for step in range(6):
        batch, again = source[step], source_of(utterances)[step]
        jax.tree.map(np.testing.assert_array_equal, batch, again)
        for row in range(4):
            tail = batch.after[row][batch.after_mask[row]].tolist()
            target = batch.targets[row][batch.weights[row] > 0].tolist()
            task = "translation" if len(target) == 3 else "asr"
            assert tail in [WRAPPING.around(p)[1] for p in PROMPTS[task]]
            assert batch.after_mask[row, -1]  # the prompt ends where the answer begins
            index = next(i for i, u in enumerate(utterances) if u.targets.get(task) == target)
            np.testing.assert_array_equal(batch.speech[row][batch.heard[row]], utterances[index].latents())
            seen.add((index, task))
        assert (batch.before == batch.before[0]).all() and batch.before[0, 0] == 1
    assert {task for _, task in seen} == {"translation", "asr"} and len({i for i, _ in seen}) == 12


def test_validation_is_of_every_utterance_once_however_many_a_batch(setting):
    model, base, utterances = setting
    params, tokens = model.init(jax.random.key(0)), spelling.vocabulary(utterances)
    for task, loss in (("translation", partial(answer_nll, model)), ("asr", partial(spelling.nll, model, tokens))):
        totals, summed = [], jax.jit(loss)
        for size in (5, 12):
            batches = list(every_utterance(utterances, WRAPPING, size, task))
            assert len({b.targets.shape for b in batches}) == 1 and len(batches) == -(-12 // size)
            totals.append(np.sum([summed(params, base, batch) for batch in batches], axis=0))
        np.testing.assert_allclose(totals[0], totals[1], rtol=1e-5)
        assert totals[0][1] == (34 if task == "translation" else 12)  # the two without German answer in English


def test_batches_are_no_wider_than_their_utterances_need():
    """Short recordings with short texts, and long ones with long texts."""

    def spoken(positions, tokens):
        return Spoken(lambda: np.ones((positions, 4), np.float32), None, positions, {"asr": [5] * tokens})

    utterances = [spoken(90 + i, 7) for i in range(8)] + [spoken(490 + i, 23) for i in range(8)]
    source = source_of(utterances, steps=4)
    assert sorted(source[i].heard.shape for i in range(4)) == [(4, 100), (4, 100), (4, 500), (4, 500)]
    assert {source[i].targets.shape for i in range(4)} == {(4, 8), (4, 24)}


def test_padding_changes_nothing(setting):
    """An utterance's logits are the same alone and beside a longer one with a longer prompt."""
    model, base, utterances = setting
    params = model.init(jax.random.key(0))
    batch = source_of(utterances, share=1.0)[0]
    row = int(np.argmin(batch.heard.sum(1)))
    whole = model.logits(base, params, batch)[row]
    size, tail = int(batch.heard[row].sum()) // 17 * 17 + 17, batch.after_mask[row]
    alone = jax.tree.map(lambda x: x[row : row + 1], batch)
    alone = alone.replace(
        speech=alone.speech[:, :size], heard=alone.heard[:, :size],
        after=alone.after[:, tail], after_mask=alone.after_mask[:, tail],
    )  # fmt: skip
    real = batch.weights[row] > 0
    np.testing.assert_allclose(model.logits(base, params, alone)[0][real], whole[real], atol=1e-5)


def test_only_connector_and_lora_move_and_the_loss_falls(setting):
    model, base, utterances = setting
    params = model.init(jax.random.key(0))
    tx = make_tx(params)
    state, step = states.create(params, tx, 0), jax.jit(make_step(partial(answer_nll, model), tx))
    frozen, source, seen = jax.tree.map(np.array, base), source_of(utterances), []
    for _ in range(8):
        state, metrics = step(state, base, source[0])
        seen.append(float(metrics["loss"]))
    assert seen[-1] < seen[0] - 0.5
    jax.tree.map(np.testing.assert_array_equal, frozen, base)
    still = [
        jax.tree_util.keystr(path)
        for path, same in jax.tree_util.tree_leaves_with_path(
            jax.tree.map(lambda a, b: bool((a == b).all()), params, state.params)
        )
        if same
    ]
    # With one query the softmax of self-attention is over one element: a key's bias has no gradient at all.
    assert all("['attn']['key']" in p or "['attn']['query']" in p for p in still)


def test_resumed_equals_uninterrupted(setting, tmp_path):
    model, base, utterances = setting
    mesh = sharding.make_mesh(1)
    base = jax.device_put(base, sharding.base_shardings(base, mesh, sharding.SALMONN_RULES))
    params = model.init(jax.random.key(0))
    tx = make_tx(params)
    step = make_step(partial(answer_nll, model), tx)

    def train(folder, steps):
        state = states.create(jax.tree.map(jnp.copy, params), tx, 0)
        sizes = dict(steps=steps, mesh=mesh, log_every=2, save_every=2)
        return loop.fit(step, state, base, iterate(source_of(utterances, 5)), folder=folder, **sizes).params

    whole = train(tmp_path / "whole", 5)
    train(tmp_path / "parts", 3)
    jax.tree.map(np.testing.assert_array_equal, whole, train(tmp_path / "parts", 5))
