"""How exactly matrices are multiplied, as `jax_default_matmul_precision` says.

By default operands are multiplied as they are. Set to "bfloat16" they are rounded to bfloat16 and their products summed
in float32, as a TPU does by default. XLA ignores the setting on CPUs, though those that multiply bfloat16 (AVX512-BF16,
AMX) do it about twice as fast; so here it is obeyed by rounding the operands, of products with weights alone: in
attention the rounding takes longer than the product saves. Sums, norms, softmax and caches keep their own types.
"""

from typing import Any

import jax
import jax.numpy as jnp

NARROW = "bfloat16"  # jax_default_matmul_precision's name for it


def at_least_float32(dtype: Any) -> Any:
    """The type of sums, softmax, norms and logits: float32 for narrower types; float64 remains, for exact tests."""
    return jnp.promote_types(dtype, jnp.float32)


def is_narrow() -> bool:
    return jax.config.jax_default_matmul_precision == NARROW  # type: ignore[attr-defined]  # set when it is imported


def narrow(x: jax.Array) -> jax.Array:
    """x as products take it; of float32, where the setting asks for bfloat16."""
    return x.astype(jnp.bfloat16) if is_narrow() and x.dtype == jnp.float32 else x


def matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """x @ w, summed in float32 or better, in x's type."""
    return jnp.matmul(narrow(x), narrow(w), preferred_element_type=at_least_float32(x.dtype)).astype(x.dtype)
