"""Freed memory is kept for the next step."""

import platform
import subprocess
import sys

import pytest

# Page faults of the last of ten rounds of taking and freeing 64 MiB, in a process of its own
FAULTS = """
import resource, sys, torch
from mimkit.engine.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True, timeout=120
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator can be told")
def test_a_step_finds_the_pages_of_the_step_before() -> None:
    assert faults("keep") * 10 < faults("usual")
