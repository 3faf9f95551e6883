"""Whether this processor multiplies narrower numbers faster: tiny.en's largest products, in decoding and in encoding.

COMMAND: python -m benchmarks.narrow_products [--rows=16] [--positions=12000] [--rounds=5]
The vocabulary [51864, 384] times the states of some rows, as `lora.by_rows` multiplies them, and an MLP's map
[384, 1536] of the positions of eight windows. bfloat16 is what `transcribe --bfloat16` uses. Eight bits, which nothing
here uses: a scale for each column, and either widened as they are read, or multiplied as integers, the states made
integers first. "Ours" is float32: a ratio over 1 is how much longer the other takes.
"""

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import race
from jaxmoe.memory import reuse_memory
from jaxmoe.model.lora import by_rows
from jaxmoe.model.precision import NARROW, matmul

VOCABULARY, WIDTH, HIDDEN = 51864, 384, 1536  # tiny.en's
AT_ONCE = 1 << 33  # multiply-adds timed together: one product takes milliseconds

Product = Callable[[jax.Array, jax.Array], jax.Array]


def quantised(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Integers of eight bits [N, D] and the scale of each row [N, 1]."""
    scale = jnp.abs(x).max(1, keepdims=True) / 127.0
    return jnp.round(x / scale).astype(jnp.int8), scale


def widened(x: jax.Array, weights: tuple[jax.Array, jax.Array]) -> jax.Array:
    narrow, scale = weights
    return by_rows(x, narrow.astype(x.dtype)) * scale.T


def integers(x: jax.Array, weights: tuple[jax.Array, jax.Array]) -> jax.Array:
    (narrow, scale), (states, own) = weights, quantised(x)
    product = jax.lax.dot_general(narrow, states, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
    return product.T * own * scale.T


def in_bfloat16(product: Product) -> Product:
    def narrow(x: jax.Array, w: jax.Array) -> jax.Array:
        with jax.default_matmul_precision(NARROW):
            return product(x, w)

    return narrow


def repeated(product: Callable[..., jax.Array], x: jax.Array, weights: object, times: int) -> Callable[[], None]:
    jitted = jax.jit(product)

    def program() -> None:
        for _ in range(times):
            jitted(x, weights).block_until_ready()

    return program


def ask(name: str, x: jax.Array, words: jax.Array, product: Product, rounds: int) -> None:
    """Prints a row for each of the narrower products; words [F, D], which `product` takes."""
    rivals = {
        "bfloat16": (in_bfloat16(product), words.astype(jnp.bfloat16)),
        "8 bits, integers": (integers, quantised(words)),
        "8 bits, widened": (widened, quantised(words)),
    }
    times = max(AT_ONCE // (len(x) * words.size), 1)
    programs = {"float32": repeated(product, x, words, times)}
    programs |= {rival: repeated(narrow, x, weights, times) for rival, (narrow, weights) in rivals.items()}
    seconds, exact = race.alternate(programs, rounds), product(x, words)
    for rival, (narrow, weights) in rivals.items():
        error = float(jnp.abs(narrow(x, weights) - exact).max() / exact.std())
        work = f"{times} products; the largest error {error:.3f} of a result's standard deviation"
        print(race.Result(name, rival, seconds["float32"], seconds[rival], None, work).row(), flush=True)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rows", type=int, default=16)
    p.add_argument("--positions", type=int, default=12000)
    p.add_argument("--rounds", type=int, default=5)
    args = p.parse_args()
    reuse_memory()
    rng = np.random.default_rng(0)
    draw = lambda n: jnp.asarray(rng.standard_normal((n, WIDTH)), jnp.float32)
    print(race.HEAD)
    ask(f"vocabulary, {args.rows} rows", draw(args.rows), draw(VOCABULARY), by_rows, args.rounds)
    turned = lambda x, w: matmul(x, w.T)
    ask(f"MLP, {args.positions} positions", draw(args.positions), draw(HIDDEN), turned, args.rounds)


if __name__ == "__main__":
    main()
