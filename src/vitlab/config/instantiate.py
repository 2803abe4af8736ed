"""The one place where a config's `_target_` becomes an object."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from vitlab.config.signatures import read_signature
from vitlab.errors import UserError

ALLOWED_PREFIXES = (
    "vitlab.",
    "torch.",
    "timm.",
    "pytorch_lightning.",
    "torchvision.",
    "torchmetrics.",
)
TIMM_TARGET = "vitlab.models.timm_model"
OUR_FUNCTIONS = (TIMM_TARGET, "vitlab.optim.cosine_with_warmup", "vitlab.optim.cosine_over_time")
# Targets in the configs of runs that earlier versions wrote -> what they are called now.
RENAMED_TARGETS = {
    "vitlab.ranks.strategies.DataParallel": "vitlab.distributed.strategies.DataParallel",
    "vitlab.ranks.strategies.FullySharded": "vitlab.distributed.strategies.FullySharded",
    "vitlab.callbacks.FiniteLoss": "vitlab.callbacks.NaNGuard",
    "vitlab.callbacks.RunProgress": "vitlab.callbacks.RunProgressBar",
}
REFUSALS = ("MisconfigurationException",)


def build(node: DictConfig, where: str, **kwargs: Any) -> Any:
    """Instantiates a node of the user's own config.

    Args:
        node: With `_target_`.
        where: The node's place in the config, for messages.
        **kwargs: Added to the node's own.

    Raises:
        UserError: the target can't be imported, or refuses its arguments.
    """
    try:
        return instantiate(node, _convert_="all", **kwargs)
    except InstantiationException as error:
        explanation = _explain(error, where)
        if explanation is None:
            raise (error.__cause__ or error) from None
        raise UserError(explanation) from error


def update_old_config(node: Any) -> Any:
    """A run's config, plain data, with the names that its targets have in this version."""
    if isinstance(node, dict):
        return {
            key: RENAMED_TARGETS.get(value, value) if key == "_target_" else update_old_config(value)
            for key, value in node.items()
        }
    return [update_old_config(value) for value in node] if isinstance(node, list) else node


def weight_keys(node: Mapping[str, Any]) -> set[str]:
    """Keys of the `model` group that say what is loaded into the network, not what it is: `weights`, unless the target
    takes an argument of that name itself, and `pretrained` of timm's networks."""
    target = node["_target_"]
    if target == TIMM_TARGET:
        return {"pretrained", "weights"}
    return {"weights"} - set(read_signature(target, "model").parameters)


def build_network(node: DictConfig) -> Any:
    """The network of the `model` group, without pretrained weights: `vitlab.weights` loads those, for a new run alone.

    Raises:
        UserError: as `build`.
    """
    left_out = weight_keys(node)
    return build(OmegaConf.create({key: node[key] for key in node if key not in left_out}), "model")


def is_allowed(target: str) -> bool:
    """Whether a target may be built from a file that somebody else may have written: a class of a kind that a config
    builds, or one of vitlab's functions that do."""
    return target in OUR_FUNCTIONS or (target.startswith(ALLOWED_PREFIXES) and _is_part(target))


def _is_part(target: str) -> bool:
    import pytorch_lightning as pl  # not before: the config is checked without the seconds that importing torch takes
    import torch

    from vitlab.optim import Finetuning

    try:
        found = get_object(target)
    except Exception:  # whatever importing what a stranger's file names stumbles on
        return False
    kinds = (
        *(torch.nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, Finetuning),
        *(pl.Trainer, pl.Callback, pl.LightningDataModule, pl.loggers.Logger, pl.profilers.Profiler),
        pl.strategies.Strategy,
    )
    return isinstance(found, type) and issubclass(found, kinds)


def check_trusted(node: Any, trusted: Sequence[str]) -> None:
    """Refuses a config from a file that names a target outside the allowed prefixes and the `trusted` ones.

    Raises:
        UserError: naming the target and how to trust it.
    """
    for target in targets(node):
        if not is_allowed(target) and not target.startswith(tuple(trusted)):
            raise UserError(
                f"the run's config would run {target}, which is not vitlab's; "
                f"if you trust it, add 'trusted_targets=[{target.split('.')[0]}.]'"
            )


def targets(node: Any) -> Iterator[str]:
    """All that a config, as plain data, names to be built."""
    if isinstance(node, dict):
        if node.get("_target_") is not None:
            yield str(node["_target_"])
        node = list(node.values())
    for value in node if isinstance(node, list) else ():
        yield from targets(value)


def trust(config: Mapping[str, Any]) -> list[str]:
    """What must be typed for the user's own classes in a run's config; nothing without them."""
    plain = OmegaConf.to_container(config) if isinstance(config, DictConfig) else config
    found = sorted({target.split(".")[0] for target in targets(plain) if not is_allowed(target)})
    return [f"'trusted_targets=[{','.join(f'{package}.' for package in found)}]'"] if found else []


def keep_accepted_model_keys(config: DictConfig, overrides: Sequence[str]) -> None:
    """Where the user typed `model._target_=...`, leaves in `config.model` the keys that this network takes, in place.

    The rest is what the chosen group's own network would have taken. A key that the user typed stays: where the network
    does not take it, that is a mistake to be named.

    Args:
        config: With the `model` group.
        overrides: What the user typed.

    Raises:
        UserError: the target can't be imported.
    """
    typed = {
        o.lstrip("+").split("=")[0].removeprefix("model.") for o in overrides if o.lstrip("+").startswith("model.")
    }
    if "_target_" not in typed:
        return
    signature = read_signature(config.model["_target_"], "model")
    kept = {"_target_", "weights", *signature.parameters, *typed}
    with open_dict(config):
        for key in set(config.model) - kept:
            del config.model[key]


def _explain(error: InstantiationException, where: str) -> str | None:
    """A sentence where the input is at fault; None where the target's own code is."""
    cause = error.__cause__
    if isinstance(cause, UserError):
        return str(cause)
    # By name: importing Lightning for the class would take seconds.
    refused = isinstance(cause, ImportError | ValueError | TypeError) or type(cause).__name__ in REFUSALS
    if cause is None or refused:
        return f"{where}: {_first_line(cause or error)}"
    return None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
