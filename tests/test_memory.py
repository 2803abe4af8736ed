import platform
import resource
import subprocess
import sys

import pytest
import torch

from vitlab.compat import peak_memory

MEASURE = """
import resource, torch
from vitlab.system import keep_freed_memory
def step():
    torch.ones(2**24), torch.ones(2**23)  # 64 and 32 MiB
def faults():
    for _ in range(5):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults())
keep_freed_memory()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="elsewhere nothing is changed")
def test_freed_memory_is_not_filled_with_zeros_again_in_each_step() -> None:
    result = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    given_back, kept = map(int, result.stdout.split())
    assert kept < given_back / 20
    assert given_back > 10 * 64  # the counter counts, even with pages of 2 MiB


def test_the_peak_is_the_process_s_in_gib() -> None:
    peak = peak_memory(torch.device("cpu"))
    assert peak is not None
    assert peak == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, rel=0.01)
