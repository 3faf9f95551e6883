"""Keeps XLA's compiled programs on disk, so that a second start compiles nothing."""

import hashlib
import os
from pathlib import Path
import platform

import jax

from jaxmoe.weights import cache_folder


def enable_cache() -> Path:
    """Turns on JAX's persistent compilation cache and returns its folder.

    It is $JAX_COMPILATION_CACHE_DIR where that is set, else a folder of this kind of processor below
    $JAXMOE_CACHE/xla (~/.cache/jaxmoe/xla). Programs of any size and compile time are kept.
    """
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    folder = Path(named) if named else cache_folder() / "xla" / _processor()
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def _processor() -> str:
    """A name for the processor's instruction set: XLA's CPU programs run only where they were compiled for."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        features = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
