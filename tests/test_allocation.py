"""Large arrays are made of memory that is there."""

import platform
import subprocess
import sys

import pytest

from tf_packnet import allocation

# Page faults of making an array of 40 MiB and writing to it, again and again.
COUNT = """
import resource, sys
import numpy as np
from tf_packnet import allocation
if sys.argv[1] == "kept":
    assert allocation.keep_freed()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.empty(40 * 2**20, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_is_freed_is_used_again():
    faults = {}
    for how in ("kept", "as it comes"):
        done = subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True)
        faults[how] = int(done.stdout)
    assert faults["kept"] < 10
    assert faults["as it comes"] > 100  # else there is nothing to keep


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert allocation.keep_freed() is False
