"""Rebase the paths of a moved run; refuse paths and links that leave a run."""

from pathlib import Path
from typing import Any

from vitlab.errors import UserError

# Keys whose values are places that loggers, callbacks and profilers write to.
OUTPUT_KEYS = (
    *("file", "dir", "dirpath", "data_dir", "root_dir", "save_dir", "default_root_dir", "log_dir", "offline_directory"),
    *("tracking_uri", "artifact_location"),
)


def rebase_paths(node: Any, before: str, now: str) -> Any:
    """Replaces the folder `before` by `now` in all paths of a config, given and returned as plain data."""
    if isinstance(node, dict):
        return {key: rebase_paths(value, before, now) for key, value in node.items()}
    if isinstance(node, list):
        return [rebase_paths(value, before, now) for value in node]
    if isinstance(node, str):
        path = node.removeprefix("sqlite:///")
        if path == before or path.startswith(f"{before}/"):
            return node.removesuffix(path) + now + path.removeprefix(before)
    return node


def check_paths(node: Any, run: Path, key: str = "") -> None:
    """Refuses a config from a file with which loggers, callbacks or profilers would write outside the run.

    Args:
        node: Part of the config, as plain data.
        run: The run's directory.
        key: The key whose value `node` is.

    Raises:
        UserError: names the key and the path.
    """
    if isinstance(node, dict):
        for name, value in node.items():
            check_paths(value, run, name)
    elif isinstance(node, list):
        for value in node:
            check_paths(value, run, key)
    elif isinstance(node, str) and not node.startswith(("http://", "https://")):
        path = Path(node.removeprefix("sqlite:///"))
        # Values of other keys are names (of a logger's run, of a file in a folder), but a name can be a path.
        is_path = key in OUTPUT_KEYS or path.is_absolute() or ".." in path.parts
        if is_path and not path.resolve().is_relative_to(run.resolve()):
            raise UserError(f"the run's config would write to {key}={node}, outside of {run}")


def check_links(run: Path) -> None:
    """Refuses a run directory with links that lead out of it: a file written to the run would land there.

    Raises:
        UserError: names the link.
    """
    for path in run.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(run.resolve()) and not _is_from_wandb(path, run):
            raise UserError(
                f"{path} is a link to {path.readlink()}, outside of the run: replace the link by the file or "
                "folder that it leads to"
            )


def _is_from_wandb(path: Path, run: Path) -> bool:
    # wandb links to its logs in the home directory, and follows no link that it finds.
    return "wandb" in path.relative_to(run).parts[:-1]
