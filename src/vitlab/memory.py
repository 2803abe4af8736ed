"""How much memory was needed."""

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
