"""Paths in the config of a run that lies elsewhere now, or that somebody else has written."""

from pathlib import Path
from typing import Any

from vitlab.errors import UserError

WRITES = ("file", "dirpath", "save_dir", "default_root_dir", "tracking_uri", "log_dir")  # keys of what writes files


def moved(node: Any, before: str, now: str) -> Any:
    """A config whose paths below the folder `before` lie below `now`, as plain data."""
    if isinstance(node, dict):
        return {key: moved(value, before, now) for key, value in node.items()}
    if isinstance(node, list):
        return [moved(value, before, now) for value in node]
    if isinstance(node, str):
        path = node.removeprefix("sqlite:///")
        if path == before or path.startswith(f"{before}/"):
            return node.removesuffix(path) + now + path.removeprefix(before)
    return node


def check_paths(node: Any, run: Path) -> None:
    """Refuses a config from a file that would have loggers, callbacks or profilers write outside the run.

    Raises:
        UserError: naming the key and the path.
    """
    if isinstance(node, list):
        for value in node:
            check_paths(value, run)
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key in WRITES and isinstance(value, str) and not value.startswith(("http://", "https://")):
            path = Path(value.removeprefix("sqlite:///"))
            if not path.resolve().is_relative_to(run.resolve()):
                raise UserError(f"the run's config would write to {key}={value}, outside of {run}")
        check_paths(value, run)
