"""Processes that end with the one that started them."""

import ctypes
import sys

_C = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1  # man prctl


def die_with_parent(number: int) -> None:
    """Lets Linux send this process a signal when its parent ends, however that ends."""
    if _C is not None:
        _C.prctl(_PR_SET_PDEATHSIG, number)
