"""The training steps: losses against slow loops, what moves and what does not, sharded against single, resumed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmoe import sharding
from jaxmoe.data.batches import BatchSource, iterate
from jaxmoe.model import lora
from jaxmoe.model.moe import one_lora
from jaxmoe.phases import baseline, experts, gate, joint
from jaxmoe.train import loop, losses, optimizer
from jaxmoe.train import state as states
from tests import tiny


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    utterances = tiny.make_utterances(tmp_path_factory.mktemp("embeddings"))
    base, model = tiny.make_base(), tiny.make_model()
    return model, base, tiny.make_params(model, base), utterances


def make_tx(params, trainable, lr=1e-2):
    labels = optimizer.label(params, trainable)
    return optimizer.make_tx(labels, lr=lr, steps=8, warmup=1, weight_decay=0.01, clip_norm=1.0)


def batch_of(utterances, size=8, number=0):
    return BatchSource(utterances, batch_size=size, steps=8, seed=0)[number]


def joint_step(model, tx):
    return joint.make_step(model, tx, balance=0.01, z=0.001, align=0.1, temperature=1.0)


ALL = [r"gate/.*", r"experts/.*", r"shared/.*"]


def test_local_loss_equals_a_loop_over_experts(setting):
    model, base, params, utterances = setting
    batch = batch_of(utterances)
    gates = model.gates(model.gate_logits(params, batch.embedding))
    want = 0.0
    for e in range(tiny.EXPERTS):  # every expert answers the whole batch alone
        alone = jnp.tile(jax.nn.one_hot(e, tiny.EXPERTS), (8, 1))
        logits = model.logits(base, params, batch.latents, batch.tokens, alone, batch.mask)
        want += (gates[:, e] * losses.utterance_nll(logits, batch.targets, batch.weights)).sum()
    got = experts.local_loss(model, params, base, batch, gates)
    np.testing.assert_allclose(got, want / batch.weights.sum(), rtol=1e-5)


def test_an_expert_learns_from_its_own_utterances_only(setting):
    model, base, params, utterances = setting
    batch = batch_of(utterances)
    gates = jax.nn.one_hot(jnp.array([0, 0, 1, 1, 0, 1, 0, 1]), tiny.EXPERTS)
    grad = jax.grad(lambda p, b: experts.local_loss(model, p, base, b, gates))
    swapped = batch.replace(targets=jnp.where((gates[:, 0] == 1)[:, None], batch.targets[::-1], batch.targets))
    a, b = grad(params, batch)["experts"], grad(params, swapped)["experts"]
    for path in a:
        np.testing.assert_allclose(a[path]["b"][:, 1], b[path]["b"][:, 1], atol=1e-6)
        assert not np.allclose(a[path]["b"][:, 0], b[path]["b"][:, 0], atol=1e-6)
        np.testing.assert_array_equal(a[path]["b"][:, 2], 0)


def test_idle_experts_do_not_drift(setting):
    """Adam's momentum and weight decay move an idle expert unless it is held: seen to fail without hold_idle."""
    model, base, params, utterances = setting
    model = tiny.make_model(top_k=1)
    tx = make_tx(params, [r"experts/.*", r"shared/.*"])
    state = states.create(params, tx, 0)
    step = jax.jit(experts.make_step(model, tx))
    to = lambda e: {**params["gate"], "dense2": {"kernel": jnp.zeros((16, 3)), "bias": 9.0 * jax.nn.one_hot(e, 3)}}
    state = state.replace(params={**params, "gate": to(0)})
    state, _ = step(state, base, batch_of(utterances, number=0))  # expert 0 gains momentum
    after_first = jax.tree.map(np.asarray, state.params["experts"])
    state = state.replace(params={**state.params, "gate": to(1)})
    state, _ = step(state, base, batch_of(utterances, number=1))
    for path, leaves in state.params["experts"].items():
        np.testing.assert_array_equal(leaves["b"][:, 0], after_first[path]["b"][:, 0])
        np.testing.assert_array_equal(leaves["b"][:, 2], params["experts"][path]["b"][:, 2])
        assert (leaves["b"][:, 1] != after_first[path]["b"][:, 1]).any()


@pytest.mark.parametrize(
    "phase, trainable",
    [("gate", [r"gate/.*"]), ("experts", [r"experts/.*", r"shared/.*"]), ("joint", ALL)],
)
def test_only_labelled_leaves_move(setting, phase, trainable):
    model, base, params, utterances = setting
    tx = make_tx(params, trainable)
    steps = {
        "gate": lambda: gate.make_step(model, tx, np.ones(tiny.EXPERTS, np.float32)),
        "experts": lambda: experts.make_step(model, tx),
        "joint": lambda: joint_step(model, tx),
    }
    step, state = jax.jit(steps[phase]()), states.create(params, tx, 0)
    frozen = jax.tree.map(np.array, base)
    for i in range(3):
        state, _ = step(state, base, batch_of(utterances, number=i))
    moved = jax.tree.map(lambda a, b: "train" if (np.asarray(a) != b).any() else "freeze", params, state.params)
    assert moved == optimizer.label(params, trainable)  # bit for bit: a frozen leaf has no tolerance
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: (a == b).all(), frozen, base)))


def test_a_pattern_that_trains_nothing_is_an_error(setting):
    with pytest.raises(ValueError, match="matches none"):
        optimizer.label(setting[2], [r"expert/.*"])


def test_parameter_counts(setting):
    model, base, params, _ = setting
    maps = lora.linear_shapes(base, [r"decoder/blocks/.*"]).values()
    per_rank = sum(n * (d + f) for n, d, f in maps)
    assert lora.count(params["experts"]) == tiny.EXPERTS * 2 * per_rank
    assert lora.count(params["shared"]) == 3 * per_rank
    single = one_lora(model)
    alone = single.init(jax.random.key(0), base)
    assert lora.count(alone) == lora.count(params["experts"]) + lora.count(params["shared"])
    assert alone["gate"] == {} and alone["experts"] == {}


def test_baseline_learns(setting):
    model, base, _, utterances = setting
    model = one_lora(model, rank=4)
    params = model.init(jax.random.key(0), base)
    tx = make_tx(params, [r"shared/.*"], lr=3e-2)
    step, state = jax.jit(baseline.make_step(model, tx)), states.create(params, tx, 0)
    seen = []
    for _ in range(8):
        state, metrics = step(state, base, batch_of(utterances))
        seen.append(float(metrics["loss"]))
    assert seen[-1] < seen[0] - 0.3


def test_four_devices_equal_one(setting):
    """The same global batch on a 4 x 1 and a 2 x 2 mesh: balance statistics are over all of it."""
    model, base, params, utterances = setting
    tx = make_tx(params, ALL)
    results = []
    for data, width in ((1, 1), (4, 1), (2, 2)):
        mesh = sharding.make_mesh(data, width)
        placed = jax.device_put(base, sharding.base_shardings(base, mesh))
        state = jax.device_put(states.create(params, tx, 0), sharding.replicated(mesh))
        step = jax.jit(joint_step(model, tx), out_shardings=sharding.replicated(mesh))
        for i in range(2):
            state, metrics = step(state, placed, sharding.put_batch(batch_of(utterances, number=i), mesh))
        results.append((jax.device_get(state.params), jax.device_get(metrics)))
    for got in results[1:]:
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(results[0]), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_resumed_equals_uninterrupted(setting, tmp_path):
    model, base, params, utterances = setting
    mesh = sharding.make_mesh(1)
    base = jax.device_put(base, sharding.base_shardings(base, mesh))

    def train(folder, steps):
        tx = make_tx(params, ALL)
        source = BatchSource(utterances, batch_size=8, steps=7, seed=3)
        state = states.create(jax.tree.map(jnp.copy, params), tx, 0)
        return loop.fit(
            joint_step(model, tx),
            state,
            base,
            iterate(source),
            folder=folder,
            steps=steps,
            mesh=mesh,
            log_every=2,
            save_every=3,
        )

    whole = train(tmp_path / "whole" / "joint", 7)
    train(tmp_path / "parts" / "joint", 4)
    parts = train(tmp_path / "parts" / "joint", 7)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), whole.params, parts.params)
    assert all(jax.tree.leaves(same))
    lines = [(tmp_path / d / "joint" / "metrics.jsonl").read_text().count("\n") for d in ("whole", "parts")]
    assert lines[0] == 4 and lines[1] == 4


def test_a_loss_that_is_not_finite_stops_and_names_the_step(setting, tmp_path):
    model, base, params, utterances = setting
    mesh = sharding.make_mesh(1)
    broken = jax.tree.map(lambda x: x * jnp.nan, params)
    tx = make_tx(params, ALL)
    source = BatchSource(utterances, batch_size=8, steps=4, seed=3)
    with pytest.raises(FloatingPointError, match="step 1"):
        loop.fit(
            joint_step(model, tx),
            states.create(broken, tx, 0),
            jax.device_put(base, sharding.base_shardings(base, mesh)),
            iterate(source),
            folder=tmp_path / "joint",
            steps=4,
            mesh=mesh,
            log_every=1,
            save_every=4,
        )
