"""Reproducible Vision Transformer experiments on CIFAR-10.

`vitlab.train` trains a model, `vitlab.load` opens a trained one. Mistakes are a `vitlab.UserError` of one sentence.
"""

from typing import TYPE_CHECKING, Any

from vitlab.errors import UserError
from vitlab.system import prepare_environment

if TYPE_CHECKING:
    from vitlab.api import load, train

    __version__: str

__all__ = ["UserError", "__version__", "load", "train"]


def __getattr__(name: str) -> Any:
    """Imports the Python API when it is first used: commands start without it."""
    if name == "__version__":
        from importlib.metadata import version

        return version("vitlab")
    if name in __all__:
        prepare_environment()
        from vitlab import api

        return getattr(api, name)
    raise AttributeError(f"module 'vitlab' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
