"""Keeps memory that XLA gives back on a CPU, so that the next program need not get it from the system page by page."""

import ctypes
import sys

# Of mallopt, glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
AT_ONCE = 1 << 30  # bytes; larger arrays are still the system's own, given back when they are freed
SPARE = (1 << 31) - 1  # bytes that are kept


def reuse_memory() -> None:
    """Has glibc keep up to 2 GiB of freed memory, in one heap; elsewhere does nothing.

    By default it maps every large array anew, and the system clears each of its pages when it is first touched: a tenth
    of the time of encoding or of a training step on a virtual machine.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for name, value in ((M_MMAP_THRESHOLD, AT_ONCE), (M_TRIM_THRESHOLD, SPARE), (M_ARENA_MAX, 1)):
            mallopt(name, value)
