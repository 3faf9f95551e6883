"""The training steps: losses against slow loops, what moves and what does not, sharded against single, resumed."""

import dataclasses

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax
import pytest

from jaxmoe import sharding
from jaxmoe.checkpoint import load_params
from jaxmoe.data.batches import BatchSource, iterate
from jaxmoe.model import lora
from jaxmoe.model.gate import fold_temperature
from jaxmoe.model.moe import one_lora
from jaxmoe.phases import baseline, experts, gate, joint
from jaxmoe.train import loop, optimizer
from jaxmoe.train import state as states
from jaxmoe.train.setup import watch_collapse
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


def joint_config(**changes) -> ConfigDict:
    fields = dict(balance=0.01, z=0.001, align=0.1, temperature=1.0, soft_steps=0, noise=0.0)
    return ConfigDict(fields | changes)


def joint_step(model, tx, **changes):
    return joint.make_step(model, tx, joint_config(**changes))


ALL = [r"gate/.*", r"experts/.*", r"shared/.*"]


def test_local_loss_equals_a_loop_over_experts(setting):
    model, base, params, utterances = setting
    batch = batch_of(utterances)
    gates = model.gates(model.gate_logits(params, batch.embedding))
    want = 0.0
    for e in range(tiny.EXPERTS):  # every expert answers the whole batch alone
        alone = jnp.tile(jax.nn.one_hot(e, tiny.EXPERTS), (8, 1))
        logits = model.logits(base, params, batch.latents, batch.tokens, alone, batch.mask)
        nll = optax.losses.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        want += (gates[:, e, None] * nll * batch.weights).sum()
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
    assert lines == [5, 5]  # steps 2, 4, 6, and those that are saved


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


def test_soft_steps_reach_every_expert_and_then_only_the_top_k(setting):
    model, _, params, utterances = setting
    batch, config = batch_of(utterances), joint_config(soft_steps=2, temperature=4.0)
    logits = model.gate_logits(params, batch.embedding)
    at = lambda step: joint.scheduled_gates(model, logits, jnp.int32(step), jax.random.key(0), config)
    np.testing.assert_allclose(at(0), jax.nn.softmax(logits / 4.0), rtol=1e-6)
    np.testing.assert_allclose(at(1), jax.nn.softmax(logits / 2.5), rtol=1e-6)
    np.testing.assert_allclose(at(2), model.gates(logits), rtol=1e-6)
    assert ((np.asarray(at(2)) > 0).sum(1) == model.top_k).all()


def test_noise_is_drawn_anew_at_every_step_and_repeats_exactly(setting):
    model, base, params, utterances = setting
    step = jax.jit(joint_step(model, make_tx(params, ALL), noise=1.0))
    state = states.create(params, make_tx(params, ALL), 3)
    nll = lambda number: step(state.replace(step=state.step + number), base, batch_of(utterances))[1]["nll"]
    assert nll(0) == nll(0) != nll(1)


def test_collapse_is_said_loudly():
    eight = {str(i): np.eye(10)[i] for i in range(8)}  # two of the ten experts have no cluster
    watch = watch_collapse(eight, floor=0.6)
    even, collapsed = {"mean_gate": [0.125] * 8 + [0, 0]}, {"mean_gate": [0.93] + [0.01] * 7 + [0, 0]}
    assert watch(even) is None and even["effective_experts"] == pytest.approx(8.0)
    assert "routing collapses: 1.5 effective experts of 8" in watch(collapsed)


def test_given_routing_is_the_posterior(setting):
    _, base, _, utterances = setting
    model = tiny.make_model(routing="given")
    given = dataclasses.replace(utterances, given=True)
    batch = batch_of(given)
    gates = model.gates(model.gate_logits({}, batch.embedding))
    np.testing.assert_allclose(gates, batch.posterior, atol=1e-6)
    assert model.init(jax.random.key(0), base)["gate"] == {}


def test_an_expert_without_data_answers_as_the_shared_path_alone(setting):
    """Spare experts (fewer clusters than experts) start from the shared path: their own update is zero."""
    model, base, _, utterances = setting
    model = tiny.make_model(top_k=1)
    params = model.init(jax.random.key(0), base)
    tx = make_tx(params, [r"experts/.*", r"shared/.*"])
    step, state = jax.jit(experts.make_step(model, tx)), states.create(params, tx, 0)
    busy = jnp.tile(jnp.array([9.0, -9.0, -9.0]), 1)
    state.params["gate"]["dense2"]["kernel"] = jnp.zeros_like(params["gate"]["dense2"]["kernel"])
    state.params["gate"]["dense2"]["bias"] = busy
    for number in range(3):
        state, _ = step(state, base, batch_of(utterances, number=number))
    batch, row = batch_of(utterances), lambda e: jnp.tile(jax.nn.one_hot(e, tiny.EXPERTS), (8, 1))
    answer = lambda gates: model.logits(base, state.params, batch.latents, batch.tokens, gates, batch.mask)
    shared_only = answer(jnp.zeros((8, tiny.EXPERTS)))
    np.testing.assert_allclose(answer(row(2)), shared_only, atol=1e-6)
    assert np.abs(answer(row(0)) - shared_only).max() > 1e-3


def test_the_calibrated_gate_says_how_often_it_is_right():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 2000)
    logits = 2.0 * np.eye(4)[truth] + rng.standard_normal((2000, 4))
    posterior = np.eye(4)[truth]
    loud = 6.0 * logits  # over-confident
    temperature = gate.best_temperature(loud, posterior)
    before, after = gate.figures(loud, posterior), gate.figures(loud / temperature, posterior)
    assert before["accuracy"] == after["accuracy"]
    assert after["calibration_error"] < 0.03 < 0.1 < before["calibration_error"]
    params = {"dense1": {}, "dense2": {"kernel": jnp.ones((3, 4)), "bias": jnp.arange(4.0)}}
    folded = fold_temperature(params, 2.0)["dense2"]
    np.testing.assert_allclose(folded["bias"], [0, 0.5, 1, 1.5])


def test_the_best_parameters_are_kept(setting, tmp_path):
    """`select` keeps those of the lowest figure, not the last ones, also when a run is resumed."""
    model, base, params, utterances = setting
    tx = make_tx(params, [r"shared/.*"])
    figures = iter([4.0, 3.0, 1.0, 2.0])
    seen = []

    def evaluate(params):
        seen.append(jax.device_get(params))
        return {"figure": next(figures)}

    fields = dict(folder=tmp_path, steps=6, mesh=sharding.make_mesh(1), log_every=2, save_every=2)
    batches = iterate(BatchSource(utterances, batch_size=8, steps=6, seed=0))
    loop.fit(experts.make_step(model, tx), states.create(params, tx, 0), base, batches,
             evaluate=evaluate, select="figure", **fields)  # fmt: skip
    best = load_params(tmp_path / "best", params)
    assert all(map(np.array_equal, jax.tree.leaves(best), jax.tree.leaves(seen[2])))
