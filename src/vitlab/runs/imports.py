"""Import the libraries in less time."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any


@contextmanager
def fast_imports() -> Iterator[None]:
    """Import libraries without garbage collection, and keep it out of them later: they are a million live objects.

    Imports are most of the time before the first step.
    """
    if "torch" in sys.modules:  # the process holds more than what is imported now
        yield
        return
    _delay_scipy_signal()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class _LateModule(ModuleType):
    """A module that is executed when something is read from it that it does not hold yet."""

    def __getattr__(self, name: str) -> Any:
        self.__class__ = ModuleType  # type: ignore[assignment]
        self.__loader__.exec_module(self)  # type: ignore[union-attr]
        return getattr(self, name)


def _delay_scipy_signal() -> None:
    """Let `import scipy.signal` take no time until it is used.

    torchmetrics 1.9 imports it for its audio metrics, which takes as long as half of torch, and gives it the function
    `hamming` that older versions had. The standard library's LazyLoader would execute it when that is looked up.
    """
    if find_spec("scipy") and "scipy.signal" not in sys.modules and (spec := find_spec("scipy.signal")):
        module = sys.modules["scipy.signal"] = module_from_spec(spec)
        module.hamming = lambda *args, **kwargs: module.windows.hamming(*args, **kwargs)  # type: ignore[attr-defined]
        module.__class__ = _LateModule
