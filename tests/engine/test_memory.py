"""Freed memory is kept for the next step."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from mimkit.engine.memory import available_bytes

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


def test_memory_that_the_cache_holds_is_there_to_take_and_a_container_has_its_limit(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable: 8000 kB\nHugePages_Total: 0\n")
    assert available_bytes(meminfo, tmp_path) == 8000 * 1024
    (tmp_path / "memory.stat").write_text("anon 1000\nfile 5000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(meminfo, tmp_path) == 8000 * 1024
    (tmp_path / "memory.max").write_text("4000\n")
    assert available_bytes(meminfo, tmp_path) == 3000
    assert available_bytes(tmp_path / "missing", tmp_path) > 0
    assert available_bytes() > 0
