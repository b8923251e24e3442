"""Memory on the machine itself: how much of it there is to take, and what a step frees, kept for the next step.

glibc hands large blocks back to the system when they are freed, so the activations and gradients of every step arrive
as new pages that the system has to clear and map: 119,000 page faults in a bf16 step of MAE-B with 8 images, a tenth
of its time. Kept, they are reused as they are. The process holds its peak until it ends, as a training run does anyway.
"""

import ctypes
import os
import platform
from pathlib import Path

# Parameters of mallopt (malloc.h)
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def keep_freed_memory() -> bool:
    """Let this process's allocator reuse freed blocks of any size; False where it cannot be told so (no glibc)."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0)) and bool(libc.mallopt(M_TRIM_THRESHOLD, -1))


def share_freed_memory() -> bool:
    """Let threads that start from now on take what others have freed, where each would keep a store of its own; False
    where the allocator cannot be told so (no glibc).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1))


def available_bytes(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int:
    """Memory that this process can still take. What files fill as a cache counts, as it gives way; so does the limit
    of a container.

    Half of what is built in where the kernel does not say (macOS).
    """
    try:
        available = 1024 * _entries(meminfo)["MemAvailable:"]
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        limit = int((cgroup / "memory.max").read_text())
        return max(0, min(available, limit - _entries(cgroup / "memory.stat")["anon"]))
    except (OSError, KeyError, ValueError):  # no container, or one without a limit ("max")
        return available


def _entries(file: Path) -> dict[str, int]:
    """The first two words of each line."""
    pairs = (line.split()[:2] for line in file.read_text().splitlines())
    return {name: int(value) for name, value in pairs}
