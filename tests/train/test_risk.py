"""Expected translation risk against enumeration of every text, and on a model that learns from it."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmoe.data.batches import Batch
from jaxmoe.model import moe
from jaxmoe.model.whisper import ModelDimensions, Whisper
from jaxmoe.phases import cascade
from jaxmoe.train import optimizer, risk
from jaxmoe.train import state as states
from tests import tiny

VOCABULARY, EOT, LONGEST = 3, 2, 3  # texts of at most three tokens, the end included
DIMS = ModelDimensions(80, 20, 16, 2, 1, VOCABULARY, 8, 16, 2, 1)
START = 0  # the prompt


@pytest.fixture(scope="module")
def setting():
    model = moe.make_moe(DIMS, num_experts=2, rank=2, shared_rank=2, alpha=4.0, top_k=2, gate_hidden=8,
                         lora_targets=[r"decoder/blocks/.*"], dtype="float32", remat=False)  # fmt: skip
    mel = jnp.zeros((1, 80, 40))
    base = jax.jit(Whisper(DIMS).init)(jax.random.key(0), mel, jnp.zeros((1, 2), jnp.int32))["params"]
    params = jax.tree.map(lambda x: 4.0 * x, tiny.make_params(model, base))  # adapters that matter
    rng = np.random.default_rng(0)
    latents = jnp.asarray(rng.standard_normal((2, 20, 16)), jnp.float32)
    zeros = jnp.zeros((2, 2), jnp.int32)
    batch = Batch(latents.mean(1), latents, jnp.ones((2, 20), bool), zeros, zeros, jnp.ones((2, 2)),
                  jnp.zeros((2, 2)), jnp.arange(2))  # fmt: skip
    return model, base, params, batch


def every_text():
    """All texts that end within LONGEST tokens or are cut off there: their probabilities sum to 1."""
    words = [t for t in range(VOCABULARY) if t != EOT]
    ended = [(*text, EOT) for n in range(LONGEST) for text in itertools.product(words, repeat=n)]
    return ended + list(itertools.product(words, repeat=LONGEST))


def lists_of(texts, costs):
    shape = (2, len(texts), LONGEST)
    tokens, targets, weights = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    for k, text in enumerate(texts):
        n = len(text)
        tokens[:, k, :n], targets[:, k, :n], weights[:, k, :n] = [START, *text[:-1]], text, 1
    return risk.NBest(*map(jnp.asarray, (tokens, targets, weights, costs)))


def enumerated(model, base, params, batch, texts, costs):
    """E[cost] of each utterance by the chain rule, one prefix at a time."""
    gates = model.gates(model.gate_logits(params, batch.embedding))
    after = {}  # prefix -> probabilities of the next token [B, V]
    for prefix in {text[:n] for text in texts for n in range(len(text))}:
        tokens = jnp.tile(jnp.array([[START, *prefix]]), (2, 1))
        logits = model.logits(base, params, batch.latents, tokens, gates, batch.mask)[:, -1]
        after[prefix] = jax.nn.softmax(logits, axis=-1)
    probability = lambda text: math.prod(after[text[:n]][:, token] for n, token in enumerate(text))
    return sum(probability(text) * costs[:, k] for k, text in enumerate(texts)).mean()


def test_loss_and_gradient_equal_enumeration(setting):
    model, base, params, batch = setting
    texts = every_text()
    costs = np.random.default_rng(1).uniform(size=(2, len(texts))).astype(np.float32)

    def loss(params):
        gates = model.gates(model.gate_logits(params, batch.embedding))
        nbest = lists_of(texts, costs)
        logprob = risk.sequence_logprob(model, base, params, batch, gates, nbest)
        return risk.expected(logprob, nbest.costs, nbest.weights.sum(-1) > 0)

    want, want_grad = jax.jit(jax.value_and_grad(lambda p: enumerated(model, base, p, batch, texts, costs)))(params)
    got, got_grad = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(got, want - costs.mean(), atol=1e-5)
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(want_grad))
    assert largest > 3e-3 and float(jnp.abs(want_grad["gate"]["dense2"]["kernel"]).max()) > 0
    for a, b in zip(jax.tree.leaves(got_grad), jax.tree.leaves(want_grad), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3 * largest)  # float32


def test_a_short_list_is_renormalised_over_what_it_holds():
    logprob, costs = jnp.log(jnp.array([[0.2, 0.1, 0.9]])), jnp.array([[0.5, 0.2, 7.0]])
    got = risk.expected(logprob, costs, jnp.array([[True, True, False]]))
    np.testing.assert_allclose(got, (2 / 3) * 0.15 - (1 / 3) * 0.15, atol=1e-6)


def test_a_step_moves_probability_to_what_translates_well(setting):
    model, base, params, batch = setting
    texts = every_text()
    costs = np.tile(np.array([[0.0 if text[0] == 1 else 1.0 for text in texts]], np.float32), (2, 1))
    tx = optimizer.make_tx(
        optimizer.label(params, [r".*"]), lr=2e-2, steps=30, warmup=1, weight_decay=0.0, clip_norm=1.0
    )
    step = jax.jit(cascade.make_step(model, tx, ce=0.0, balance=0.0))
    state, seen = states.create(params, tx, 0), []
    for _ in range(30):
        state, metrics = step(state, base, risk.RiskBatch(batch, lists_of(texts, costs)))
        seen.append(float(metrics["risk"] + costs.mean()))
    assert seen[-1] < 0.5 * seen[0]


def test_judging_asks_the_translator_once_and_scores_each_text():
    class Letters:
        decode = staticmethod(lambda ids: "".join(map(chr, ids)))

    asked = []

    def translate(texts):
        asked.append(list(texts))
        return [text.upper() for text in texts]

    texts = [[[104, 105], [104, 111]], [[121, 101, 115]]]
    costs = risk.judge(texts, ["HI", "NO"], Letters, translate, "chrf", 3)
    assert asked == [["hi", "ho", "yes"]]
    assert costs[0, 0] == 0 and 0 < costs[0, 1] < 1 and costs[1, 0] == 1 and not costs[:, 2].any()


def test_lists_hold_prompt_text_and_end():
    nbest = risk.collate([[[1, 2], [1]], [[2]]], prompt=[0, 0], eot=3, n=2)
    assert nbest.tokens[0, 0, :4].tolist() == [0, 0, 1, 2] and nbest.targets[0, 0, :4].tolist() == [0, 1, 2, 3]
    assert nbest.weights[0, 0].sum() == 3 and nbest.weights[0, 0, 0] == 0 and not nbest.weights[1, 1].any()
