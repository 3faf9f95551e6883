"""Search against restatements in plain Python: rules, greedy, beam, sampling, caches, batches."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmoe.model import decode as decode_module
from jaxmoe.model import lora
from jaxmoe.model.decode import DecodingOptions, decode
from jaxmoe.model.logit_rules import History, LogitRules
from jaxmoe.model.whisper import ModelDimensions, Whisper

DIMS = ModelDimensions(80, 100, 32, 2, 2, 100, 64, 32, 2, 2)


@dataclasses.dataclass(frozen=True)
class Ids:
    """The special tokens of a vocabulary of 100: text below 60, timestamps from 70."""

    eot: int = 60
    sot: int = 61
    no_speech: int = 62
    no_timestamps: int = 69
    timestamp_begin: int = 70
    suppress_tokens: tuple[int, ...] = (3, 17)
    suppress_begin: tuple[int, ...] = (5, 60)


PROMPT = (61, 69)
ROWS = 3


@dataclasses.dataclass(frozen=True)
class Case:
    model: Whisper
    params: dict
    latents: jax.Array

    def decode(self, options=None, ids=None, **kwargs):
        kwargs = {"prompt": PROMPT, "latents": self.latents} | kwargs
        return decode(
            self.model,
            self.params,
            kwargs.pop("latents"),
            tokenizer=ids or Ids(),
            options=options or DecodingOptions(),
            **kwargs,
        )

    def logits(self, row, tokens, columns=None, scales=None, cross_mask=None, length=64):
        """Without a cache: logits [V] after prompt + tokens of one row; the padding behind cannot be seen."""
        take = lambda x: None if x is None else x[row : row + 1]
        padded = jnp.array([list(tokens) + [0] * (length - len(tokens))])
        out = teacher(self.model, self.params, take(self.latents), padded, columns, take(scales), take(cross_mask))
        return np.asarray(out[0, len(tokens) - 1])


def _teacher(model, params, latents, tokens, columns, scales, cross_mask):
    variables = {"params": params} | ({"lora": columns} if columns else {})
    return model.apply(variables, latents, tokens, scales, cross_mask, method="logits")


teacher = jax.jit(_teacher, static_argnums=0)


def make_case(dims: ModelDimensions = DIMS, seed: int = 0, sharpness: float = 3.0) -> Case:
    model = Whisper(dims)
    mel, tokens = jnp.zeros((1, 80, 2 * dims.n_audio_ctx)), jnp.zeros((1, 3), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(seed), mel, tokens)["params"]
    latents = jax.random.normal(jax.random.key(seed + 1), (ROWS, dims.n_audio_ctx, dims.n_audio_state))
    return Case(model, jax.tree.map(lambda x: sharpness * x, params), latents)


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case()


def plain_rules(logits, said, ids, timestamps, max_initial=50):
    """openai/whisper's three filters, one hypothesis, as loops."""
    x = np.array(logits, np.float64)
    x[list(ids.suppress_tokens)] = -np.inf
    if not said:
        x[list(ids.suppress_begin)] = -np.inf
    if not timestamps:
        return x
    x[ids.no_timestamps] = -np.inf
    last = len(said) >= 1 and said[-1] >= ids.timestamp_begin
    before = len(said) < 2 or said[-2] >= ids.timestamp_begin
    if last and before:
        x[ids.timestamp_begin :] = -np.inf
    elif last:
        x[: ids.eot] = -np.inf
    stamps = [t for t in said if t >= ids.timestamp_begin]
    if stamps:
        x[ids.timestamp_begin : stamps[-1] if last and not before else stamps[-1] + 1] = -np.inf
    if not said:
        x[: ids.timestamp_begin] = -np.inf
        x[ids.timestamp_begin + max_initial + 1 :] = -np.inf
    with np.errstate(divide="ignore"):
        if np.log(np.exp(x[ids.timestamp_begin :]).sum()) > x[: ids.timestamp_begin].max():
            x[: ids.timestamp_begin] = -np.inf
    return x


@pytest.mark.parametrize("timestamps", [False, True])
def test_rules_equal_a_plain_restatement(timestamps):
    rng = np.random.default_rng(0)
    rules = LogitRules.make(Ids(), timestamps=timestamps, max_initial_timestamp_s=0.2)
    for n in range(60):
        said = []
        for _ in range(n % 6):  # of all kinds: pairs, single timestamps, text
            said.append(int(rng.choice([*rng.integers(0, 60, 2), *rng.integers(70, 100, 2)])))
        logits = 3 * rng.standard_normal(100).astype(np.float32)
        history = rules.start((1, 1))
        for token in said:
            history = rules.advance(history, jnp.full((1, 1), token))
        history = History(*history)
        got = np.asarray(rules(jnp.asarray(logits)[None, None], history, jnp.int32(len(said))))[0, 0]
        # Decreasing times never occur in a search, and openai's rule for them reads the last one too.
        np.testing.assert_allclose(got, plain_rules(logits, said, Ids(), timestamps, max_initial=10), rtol=1e-6)


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def plain_greedy(case, row, steps, timestamps=False, prompt=PROMPT, ids=None, **kwargs):
    said, total, ids = [], 0.0, ids or Ids()
    for _ in range(steps):
        x = plain_rules(case.logits(row, [*prompt, *said], **kwargs), said, ids, timestamps)
        token = int(np.argmax(x))
        total += log_softmax(x)[token]
        if token == ids.eot:
            break
        said.append(token)
    return said, total


@pytest.mark.parametrize("timestamps", [False, True])
def test_greedy_equals_a_loop_without_cache(case, timestamps):
    prompt = PROMPT[:1] if timestamps else PROMPT
    options = DecodingOptions(max_tokens=60, timestamps=timestamps)  # past the first stage of the cache
    got = case.decode(options, prompt=prompt)
    expected = [plain_greedy(case, row, 60, timestamps, prompt) for row in range(ROWS)]
    assert got.tokens == [said for said, _ in expected]
    assert max(map(len, got.tokens)) > 48 and min(map(len, got.tokens)) < 48
    np.testing.assert_allclose(got.sum_logprob, [total for _, total in expected], rtol=1e-4)
    np.testing.assert_allclose(got.avg_logprob, [total / (len(said) + 1) for said, total in expected], rtol=1e-4)
    first = [jax.nn.softmax(case.logits(row, prompt[:1]))[62] for row in range(ROWS)]
    np.testing.assert_allclose(got.no_speech_prob, first, rtol=1e-4)


def random_columns(params):
    """Two experts of rank 3 on every linear map of the decoder."""
    shapes = lora.linear_shapes(params, [r"decoder/blocks/.*"])
    bank = lora.init_bank(jax.random.key(5), shapes, num_experts=2, rank=3)
    bank = lora.map_experts(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), bank)
    return lora.nested(lora.stack({}, bank))


def test_columns_scales_and_cross_mask_act_as_in_training(case):
    columns = random_columns(case.params)
    scales = jax.random.uniform(jax.random.key(6), (ROWS, 6))
    cross_mask = jnp.arange(DIMS.n_audio_ctx)[None] < jnp.array([[30], [60], [100]])
    inputs = {"columns": columns, "scales": scales, "cross_mask": cross_mask}
    for beam_size in (1, 3):
        got = case.decode(DecodingOptions(max_tokens=12, beam_size=beam_size), **inputs)
        for row in range(ROWS):
            total = 0.0
            for n in range(len(got.tokens[row]) + 1):
                said = got.tokens[row][:n]
                x = plain_rules(case.logits(row, [*PROMPT, *said], **inputs), said, Ids(), False)
                if n < 12:
                    total += log_softmax(x)[[*got.tokens[row], Ids.eot][n]]
            np.testing.assert_allclose(got.sum_logprob[row], total, rtol=1e-3)
        first = [jax.nn.softmax(case.logits(row, PROMPT[:1], cross_mask=cross_mask))[62] for row in range(ROWS)]
        np.testing.assert_allclose(got.no_speech_prob, first, rtol=1e-4)  # the decoder's own, without columns
    bare = case.decode(DecodingOptions(max_tokens=12))
    assert bare.tokens != case.decode(DecodingOptions(max_tokens=12), **inputs).tokens


def test_left_padding_and_an_earlier_text_change_nothing_but_what_they_should(case):
    options = DecodingOptions(max_tokens=10, beam_size=2)
    plain = case.decode(options)
    pad = 5
    ids = np.array([[7] * pad + list(PROMPT)] * ROWS)
    mask = np.array([[False] * pad + [True] * len(PROMPT)] * ROWS)
    padded = case.decode(options, prompt=ids, token_mask=mask)
    assert padded.tokens == plain.tokens
    np.testing.assert_allclose(padded.sum_logprob, plain.sum_logprob, rtol=1e-4)
    np.testing.assert_allclose(padded.no_speech_prob, plain.no_speech_prob, rtol=1e-4)
    earlier = [11, 12, 13]
    with_text = case.decode(DecodingOptions(max_tokens=10), prompt=(*earlier, *PROMPT))
    assert with_text.tokens == [plain_greedy(case, row, 10, prompt=(*earlier, *PROMPT))[0] for row in range(ROWS)]


def plain_beam(case, row, width, steps, ids):
    """CTranslate2's beam search on one row, ranked by log-probability / length."""
    beams, ended = [((), 0.0)], {}
    for _ in range(steps):
        scores = {}
        for said, total in beams:
            x = log_softmax(plain_rules(case.logits(row, [*PROMPT, *said]), list(said), ids, False))
            for token in np.argsort(-x)[: 2 * width]:
                scores[(*said, int(token))] = total + x[token]
        ranked = sorted(scores, key=scores.get, reverse=True)
        ended |= {said[:-1]: scores[said] for said in ranked[:width] if said[-1] == ids.eot}
        beams = [(said, scores[said]) for said in ranked if said[-1] != ids.eot][:width]
        if len(ended) >= width:
            break
    for said, total in beams:
        if len(ended) < width:
            ended[said] = total
    return sorted(ended.items(), key=lambda e: -e[1] / max(len(e[0]), 1))[:width]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_beam_equals_a_plain_loop(seed):
    case = make_case(seed=seed, sharpness=2.0)
    ids = Ids(suppress_begin=(5,))
    got = case.decode(DecodingOptions(beam_size=4, max_tokens=14), ids=ids)
    for row in range(ROWS):
        expected = plain_beam(case, row, 4, 14, ids)
        assert [tuple(h.tokens) for h in got.nbest[row]] == [said for said, _ in expected]
        np.testing.assert_allclose([h.sum_logprob for h in got.nbest[row]], [t for _, t in expected], rtol=1e-4)


def test_wide_beam_finds_what_exhaustive_search_finds():
    dims = dataclasses.replace(DIMS, n_vocab=6)
    ids = Ids(eot=4, sot=5, no_speech=5, no_timestamps=5, timestamp_begin=6, suppress_tokens=(5,), suppress_begin=(4,))
    case = make_case(dims, sharpness=1.5)
    got = case.decode(DecodingOptions(beam_size=64, max_tokens=3), ids=ids, prompt=(5,))
    for row in range(ROWS):
        table = {}
        for n in (1, 2, 3):
            for said in itertools.product(range(4), repeat=n):
                spoken = (*said, 4)[: 3 if n == 3 else n + 1]
                total = 0.0
                for i, token in enumerate(spoken):
                    x = plain_rules(case.logits(row, [5, *said[:i]]), list(said[:i]), ids, False)
                    total += log_softmax(x)[token]
                table[said] = total
        best = max(table, key=lambda s: table[s] / len(s))
        assert tuple(got.tokens[row]) == best
        assert len(got.nbest[row]) == 64
        for h in got.nbest[row]:
            assert math.isclose(h.sum_logprob, table[tuple(h.tokens)], rel_tol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        DecodingOptions(max_tokens=20),
        DecodingOptions(max_tokens=20, beam_size=3, timestamps=True),
        DecodingOptions(max_tokens=20, temperature=0.8, best_of=2),
    ],
    ids=["greedy", "beam", "sample"],
)
def test_a_row_decodes_the_same_alone_and_in_a_batch(case, options):
    keys = jax.random.split(jax.random.key(3), ROWS)
    together = case.decode(options, key=keys)
    for row in range(ROWS):
        alone = case.decode(options, latents=case.latents[row : row + 1], key=keys[row : row + 1])
        assert alone.tokens == [together.tokens[row]]
        np.testing.assert_allclose(alone.sum_logprob[0], together.sum_logprob[row], rtol=1e-4)


@pytest.mark.parametrize("beam", [1, 3], ids=["greedy", "beam"])
def test_rows_that_end_leave_the_batch_and_nothing_changes(case, beam, monkeypatch):
    options = DecodingOptions(max_tokens=20, beam_size=beam)
    columns, scales = random_columns(case.params), jnp.array([[0.0] * 6, [1.0] * 6, [3.0] * 6])
    decode_all = lambda: case.decode(options, columns=columns, scales=scales)
    sizes = []
    take = decode_module._take_rows
    monkeypatch.setattr(decode_module, "_take_rows", lambda c, s, keep: sizes.append(len(keep)) or take(c, s, keep))
    monkeypatch.setattr(decode_module, "STAGES", ())
    whole = decode_all()
    monkeypatch.setattr(decode_module, "STAGES", (4, 12, 16))
    parted = decode_all()
    assert sizes, [len(t) for t in whole.tokens]  # some row has ended before the last stage
    assert parted.tokens == whole.tokens
    np.testing.assert_allclose(parted.sum_logprob, whole.sum_logprob, rtol=1e-4)


def test_cold_samples_are_greedy_and_hot_ones_follow_the_distribution(case):
    greedy = case.decode(DecodingOptions(max_tokens=6))
    cold = case.decode(DecodingOptions(max_tokens=6, temperature=1e-4), key=jax.random.key(0))
    assert cold.tokens == greedy.tokens
    n = 400
    one = case.decode(
        DecodingOptions(max_tokens=1, temperature=2.0, best_of=n), latents=case.latents[:1], key=jax.random.key(1)
    )
    x = plain_rules(case.logits(0, PROMPT), [], Ids(), False)
    p = np.exp(log_softmax(x / 2.0))
    counts = np.bincount([h.tokens[0] for h in one.nbest[0]], minlength=100)
    likely = p * n > 10
    assert (np.abs(counts - p * n)[likely] < 4.5 * np.sqrt(n * p * (1 - p))[likely]).all()  # 4.5 sigma
    assert counts[[3, 17, 5, 60]].sum() == 0
    for h in one.nbest[0]:  # log-probabilities are at temperature 1
        assert math.isclose(h.sum_logprob, log_softmax(x)[h.tokens[0]], rel_tol=1e-3)


def test_misuse_is_named(case):
    with pytest.raises(ValueError, match="give a key"):
        case.decode(DecodingOptions(temperature=1.0))
    with pytest.raises(ValueError, match="less than 64"):
        case.decode(prompt=(61,) * 64)
    with pytest.raises(ValueError, match="beam_size=0"):
        DecodingOptions(beam_size=0)
