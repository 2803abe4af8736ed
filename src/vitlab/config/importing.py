"""What makes the import of the libraries, most of the time before the first step, shorter."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_gc_imports() -> Iterator[None]:
    """Looks for no garbage meanwhile, nor later on in what was imported: it is a million objects and no garbage."""
    if "torch" in sys.modules:  # the process has more in its memory than what comes now
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
