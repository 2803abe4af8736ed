"""Paths in the config of a run that lies elsewhere now, or that somebody else has written."""

from pathlib import Path
from typing import Any

from vitlab.errors import UserError

# Keys of what writes files.
WRITES = (
    *("file", "dir", "dirpath", "data_dir", "root_dir", "save_dir", "default_root_dir", "log_dir", "offline_directory"),
    *("tracking_uri", "artifact_location"),
)


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


def check_paths(node: Any, run: Path, key: str = "") -> None:
    """Refuses a config from a file that would have loggers, callbacks or profilers write outside the run.

    Args:
        node: Plain data.
        run: The run's directory.
        key: What `node` is the value of.

    Raises:
        UserError: naming the key and the path.
    """
    if isinstance(node, dict):
        for name, value in node.items():
            check_paths(value, run, name)
    elif isinstance(node, list):
        for value in node:
            check_paths(value, run, key)
    elif isinstance(node, str) and not node.startswith(("http://", "https://")):
        path = Path(node.removeprefix("sqlite:///"))
        # Others are names (of a logger's run, of a file in a folder), which may be as good as paths.
        place = key in WRITES or path.is_absolute() or ".." in path.parts
        if place and not path.resolve().is_relative_to(run.resolve()):
            raise UserError(f"the run's config would write to {key}={node}, outside of {run}")


def check_links(run: Path) -> None:
    """Refuses a run directory with links in it that lead out of it: what is written to it would land there.

    Raises:
        UserError: naming the link.
    """
    for path in run.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(run.resolve()) and not _is_wandb_s(path, run):
            raise UserError(
                f"{path} is a link to {path.readlink()}, outside of the run: a run is written to in its own directory "
                "alone; put what it leads to in its place"
            )


def _is_wandb_s(path: Path, run: Path) -> bool:
    # Links of its own to its logs in the home; it follows none that it finds.
    return "wandb" in path.relative_to(run).parts[:-1]
