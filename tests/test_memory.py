"""Memory that is given back is used again."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
import numpy as np
from jaxmoe.memory import reuse_memory
if sys.argv[1] == "reuse":
    reuse_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(50_000_000, np.uint8)
before = faults()
for _ in range(3):
    np.ones(50_000_000, np.uint8)
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_arrays_are_not_cleared_by_the_system_again():
    """50 MB are 12,207 pages of 4 KiB; each is a fault where the array is mapped anew."""
    faults = {
        how: int(subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, check=True).stdout)
        for how in ("plain", "reuse")
    }
    if faults["plain"] < 1000:
        pytest.skip(f"this system maps 150 MB with {faults['plain']} faults: its pages are large")
    assert faults["reuse"] < 200
