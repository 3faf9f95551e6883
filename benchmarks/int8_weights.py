"""Whether weights of eight bits would make decoding on a CPU faster: a decoding step's largest product, both ways.

COMMAND: python -m benchmarks.int8_weights [--rows=16] [--rounds=5]
tiny.en's vocabulary, [51864, 384], times the states of some rows, as `lora.by_rows` multiplies them. Eight bits: a
scale for each word; either widened as they are read, or multiplied as integers, the states made integers first. "Ours"
is the float32 of today's decoding: a ratio over 1 is how much longer eight bits take.
"""

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import race
from jaxmoe.model.lora import by_rows

VOCABULARY, WIDTH = 51864, 384  # tiny.en's
PRODUCTS = 20  # timed together: one takes milliseconds


def quantised(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Integers of eight bits [N, D] and the scale of each row [N, 1]."""
    scale = jnp.abs(x).max(1, keepdims=True) / 127.0
    return jnp.round(x / scale).astype(jnp.int8), scale


def widened(x: jax.Array, words: jax.Array, scale: jax.Array) -> jax.Array:
    return by_rows(x, words.astype(x.dtype)) * scale.T


def integers(x: jax.Array, words: jax.Array, scale: jax.Array) -> jax.Array:
    narrow, own = quantised(x)
    product = jax.lax.dot_general(words, narrow, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
    return product.T * own * scale.T


def repeated(product: Callable[..., jax.Array], *operands: jax.Array) -> Callable[[], None]:
    jitted = jax.jit(product)

    def program() -> None:
        for _ in range(PRODUCTS):
            jitted(*operands).block_until_ready()

    return program


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rows", type=int, default=16)
    p.add_argument("--rounds", type=int, default=5)
    args = p.parse_args()
    rng = np.random.default_rng(0)
    draw = lambda n: jnp.asarray(rng.standard_normal((n, WIDTH)), jnp.float32)
    words, x = draw(VOCABULARY), draw(args.rows)
    narrow = quantised(words)
    exact = by_rows(x, words)
    programs = {"float32": repeated(by_rows, x, words)}
    for product in (widened, integers):
        programs[product.__name__] = repeated(product, x, *narrow)
    times = race.alternate(programs, args.rounds)
    print(race.HEAD)
    for product in (widened, integers):
        error = float(jnp.abs(product(x, *narrow) - exact).max() / exact.std())
        work = f"{PRODUCTS} products of {args.rows} rows; the largest error {error:.2f} of a logit's standard deviation"
        name = f"8 bits, {product.__name__}"
        print(race.Result("vocabulary", name, times["float32"], times[product.__name__], None, work).row())


if __name__ == "__main__":
    main()
