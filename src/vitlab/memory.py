"""Measure peak memory, and keep freed memory in the process."""

import ctypes
import sys

import torch


def peak_memory(device: torch.device) -> float | None:
    """Peak memory in GiB: of tensors on a GPU, otherwise of the process (None on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def reset_peak_memory(device: torch.device) -> None:
    """Resets the peak on a GPU; that of a process can't be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def keep_freed_memory() -> None:
    """Makes glibc keep the memory that a step frees, for the next step; no effect without glibc.

    By default glibc returns each large tensor to the operating system, which fills its pages with zeros in every step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # mallopt(3); not M_MMAP_THRESHOLD, which older versions limit to 32 MiB
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
