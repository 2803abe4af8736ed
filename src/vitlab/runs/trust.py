"""Refuse what a run from somebody else would execute, or write elsewhere."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from vitlab.config.instantiate import shipped_nodes, targets, walk
from vitlab.errors import UserError
from vitlab.system import is_link, quote_for_shell

# Keys whose values are places that loggers, callbacks and profilers write to.
OUTPUT_KEYS = (
    *("file", "dir", "dirpath", "data_dir", "root_dir", "save_dir", "default_root_dir", "log_dir", "offline_directory"),
    *("tracking_uri", "artifact_location"),
)
LIBRARIES = ("vitlab.", "torch.", "timm.", "torchvision.", "pytorch_lightning.", "torchmetrics.classification.")


def check_trusted(config: Any, trusted: Sequence[str]) -> None:
    """Refuse a config from a file (a run, a checkpoint, a sweep) that names a target which is not trusted.

    Trusted are the targets that a file in `conf/` names, subclasses of the kinds that a config builds in the libraries
    that vitlab is made of, and targets that begin with one of `trusted`. A saved config is resolved: `${` in it can
    only be an attempt to name a target later, when the check is over. Raises UserError.
    """
    for path, value in walk(config):
        if "${" in path or (isinstance(value, str) and "${" in value):
            raise UserError(f"the run's config has an interpolation at {path}, which no saved config has: {value}")
    for target in targets(config):
        if not is_trusted(target) and not target.startswith(tuple(trusted)):
            trusting = quote_for_shell(f"trusted_targets=[{target.split('.')[0]}.]")
            raise UserError(
                f"the run's config would run {target}, which is not vitlab's; if you trust it, add {trusting}"
            )


def trust(config: Mapping[str, Any]) -> list[str]:
    """The argument that trusts the user's own classes in a run's config; empty without such classes."""
    plain = OmegaConf.to_container(config) if isinstance(config, DictConfig) else config
    found = sorted({target.split(".")[0] for target in targets(plain) if not is_trusted(target)})
    return [quote_for_shell(f"trusted_targets=[{','.join(f'{package}.' for package in found)}]")] if found else []


def is_trusted(target: str) -> bool:
    """Whether a target may be built without being trusted by the user; see `check_trusted`."""
    if target in {str(node["_target_"]) for _, node in shipped_nodes()}:
        return True
    if not target.startswith(LIBRARIES):  # finding the class imports its module
        return False
    import pytorch_lightning as pl  # not before: checking a config does not wait for torch
    import torch

    try:
        found = get_object(target)
    except Exception:  # importing a module by a name in a file can fail in any way
        return False
    kinds = (
        *(torch.nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, pl.Trainer, pl.Callback),
        *(pl.LightningDataModule, pl.loggers.Logger, pl.profilers.Profiler, pl.strategies.Strategy),
    )
    return isinstance(found, type) and issubclass(found, kinds)


def check_paths(config: Any, run: Path) -> None:
    """Raises UserError if a config from a file, as plain data, would let a logger or callback write outside the run."""
    for where, value in walk(config):
        if not isinstance(value, str) or value.startswith(("http://", "https://")):
            continue
        key = where.rstrip(".0123456789").rpartition(".")[2]  # of a list's items: the list's
        path = Path(value.removeprefix("sqlite:///"))
        # Values of other keys are names (of a logger's run, of a file in a folder), but a name can be a path.
        is_path = key in OUTPUT_KEYS or path.anchor or ".." in path.parts
        if is_path and not path.resolve().is_relative_to(run.resolve()):
            raise UserError(f"the run's config would write to {key}={value}, outside of {run}")


def check_links(run: Path) -> None:
    """Raises UserError if links lead out of a run directory: a file written to the run would land there."""
    for path in run.rglob("*"):
        if not is_link(path) or path.resolve().is_relative_to(run.resolve()):
            continue
        if "wandb" not in path.relative_to(run).parts[:-1]:  # it links to its logs in ~, and follows no link it finds
            raise UserError(
                f"{path} is a link to {path.readlink()}, outside of the run: replace the link by the file or folder "
                "that it leads to"
            )
