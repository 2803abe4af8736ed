"""Turn a config's `_target_` into an object, if the config is trusted to name it."""

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import yaml
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from vitlab.config.signatures import find_definition, read_signature
from vitlab.errors import UserError
from vitlab.files import CONF

COLLECTIONS = ("augment", "callbacks", "logger")  # groups of targets, each under a name that the user chooses
HYDRA_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}


def build(node: DictConfig, where: str, **kwargs: Any) -> Any:
    """Instantiate a node of the user's own config, with further arguments.

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


def weight_keys(node: Mapping[str, Any], *, imports: bool = True) -> set[str]:
    """The keys of the `model` group that name weights to load, and not arguments of the network."""
    target = node["_target_"]
    if target == "vitlab.models.timm_model":
        return {"pretrained", "weights"}
    if target.startswith("torchvision."):  # whose functions take the name of a download
        return {"weights"}
    return {"weights"} - set(read_signature(target, "model", imports=imports).parameters)


def build_network(node: DictConfig) -> Any:
    """Build the network of the `model` group, without pretrained weights: `vitlab.weights` loads those for a new run.

    Raises:
        UserError: as `build`.
    """
    left_out = weight_keys(node)
    return build(OmegaConf.create({key: node[key] for key in node if key not in left_out}), "model")


def build_loss(node: DictConfig) -> Any:
    """Build the loss, or name it: a function of two arguments that are not given is called with logits and labels.

    Raises:
        UserError: as `build`.
    """
    parameters = read_signature(str(node["_target_"]), "loss").parameters
    lacking = [name for name, parameter in parameters.items() if parameter.required and name not in node]
    later = {"_partial_": True} if is_loss_function(node, lacking) else {}
    return build(node, "loss", **later)


def build_named_metrics(names: Sequence[Any]) -> list[Any]:
    """The list `metrics` of a config, with the user's own metrics, `{name: {_target_: ...}}`, built."""
    return [
        name if isinstance(name, str) else {key: build(node, f"metrics.{key}") for key, node in name.items()}
        for name in names
    ]


def is_loss_function(node: Mapping[str, Any], lacking: Sequence[str]) -> bool:
    """Whether a target that lacks these arguments is a loss, and not a class or function that makes one."""
    found = find_definition(str(node["_target_"]))
    return found is not None and isinstance(found[1], ast.FunctionDef) and len(lacking) == 2


@cache
def shipped_nodes() -> list[tuple[str, dict[str, Any]]]:
    """Path and content of each node with a `_target_` in the files in `conf/` that fill a run's config."""
    found: list[tuple[str, dict[str, Any]]] = []
    for file in sorted(CONF.rglob("*.yaml")):
        group = file.parent.relative_to(CONF).as_posix()
        if not group.startswith("hydra"):
            text = file.read_text(encoding="utf-8")
            with suppress(yaml.YAMLError):  # Hydra reports it, if it is chosen
                content = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
                is_global = group == "." or text.startswith("# @package _global_")
                found += target_nodes(content, "" if is_global else group)
    return [(path, node) for path, node in found if not path.startswith("hydra.")]


def walk(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and content of a node and of all inside of it."""
    yield path, node
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inner:
        yield from walk(value, f"{path}.{key}" if path else str(key))


def map_texts(node: Any, change: Callable[[str], str]) -> Any:
    """A copy of a node, in which all texts but keys are changed."""
    if isinstance(node, dict):
        return {key: map_texts(value, change) for key, value in node.items()}
    if isinstance(node, list):
        return [map_texts(value, change) for value in node]
    return change(node) if isinstance(node, str) else node


def target_nodes(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Path and content of each node with a `_target_`, of a config as plain data."""
    return ((where, n) for where, n in walk(node, path) if isinstance(n, dict) and "_target_" in n)


def targets(config: Any) -> Iterator[str]:
    """All targets that a config, as plain data, names."""
    return (str(node["_target_"]) for _, node in target_nodes(config) if node["_target_"] is not None)


def fill_collections(config: DictConfig) -> None:
    """Let the `COLLECTIONS` that a config lacks, as `~logger` leaves it, be empty, in place."""
    with open_dict(config):
        for group in COLLECTIONS:
            config[group] = config.get(group) or {}


def keep_accepted_keys(config: DictConfig, overrides: Sequence[str], *, imports: bool = True) -> list[str]:
    """Drop the keys that a target given by `<node>._target_=...` does not take, in place, and return their paths.

    They belong to the target of the chosen file. A key given on the command line stays: if the target does not take it,
    that is a mistake to report. A network that takes any keys gets only the number of classes, not the sizes of a ViT.

    Raises:
        UserError: the target can't be imported.
    """
    given = {override.lstrip("+").split("=")[0] for override in overrides}
    dropped = []
    for path in sorted(key.removesuffix("._target_") for key in given if key.endswith("._target_")):
        node = OmegaConf.select(config, path, throw_on_missing=False)
        if not isinstance(node, DictConfig):
            continue
        signature = read_signature(str(node["_target_"]), path, imports=imports)
        if signature.is_open and path != "model":
            continue
        kept = {*HYDRA_KEYS, *signature.parameters, *(["weights"] if path == "model" else [])}
        kept |= {"num_classes"} if signature.is_open else set()
        others = [f"{path}.{key}" for key in map(str, node) if key not in kept]
        dropped += [other for other in others if not any(f"{key}.".startswith(f"{other}.") for key in given)]
    with open_dict(config):
        for path in dropped:
            parent, _, key = path.rpartition(".")
            del OmegaConf.select(config, parent)[key]
    return dropped


def _explain(error: InstantiationException, where: str) -> str | None:
    """Explain the error in one sentence if the input is at fault; None if the target's own code is."""
    cause = error.__cause__ or error
    if isinstance(cause, UserError):
        return str(cause)
    input_errors = (InstantiationException, ImportError, ValueError, TypeError)
    # By name: importing Lightning for the class would take seconds.
    if not isinstance(cause, input_errors) and type(cause).__name__ != "MisconfigurationException":
        return None
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{where}: {lines[0] if lines else type(cause).__name__}"
