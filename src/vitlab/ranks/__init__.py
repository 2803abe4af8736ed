"""Several processes that train one model: who is who, what they agree on, and what ends them all.

The names are imported when they are asked for: who is who must be known before the seconds that Lightning takes.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name in ("DataParallel", "FullySharded"):
        from vitlab.ranks import strategies

        return getattr(strategies, name)
    raise AttributeError(name)
