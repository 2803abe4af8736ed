"""How much memory was needed, and what becomes of it when it is freed."""

import ctypes
import sys

import torch


def peak_memory(device: torch.device) -> float | None:
    """The most so far in GiB: of tensors on a GPU, else of the process (None on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def reset_peak_memory(device: torch.device) -> None:
    """Begins anew on a GPU; the operating system keeps a process's peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def keep_freed_memory() -> None:
    """Lets the process keep the memory that a step frees, for the next step.

    glibc gives large tensors back to the operating system one by one, which then fills their pages with zeros anew in
    every step. What it costs stands in the README; elsewhere than with glibc nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # mallopt(3); not M_MMAP_THRESHOLD, which older versions limit to 32 MiB
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
