"""Finds every mistake of a composed config, before anything heavy is imported."""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from vitlab.config.annotations import misfit
from vitlab.config.building import adopt_user_network, did_you_mean, weight_keys
from vitlab.config.facts import contradictions
from vitlab.config.rules import rule_for
from vitlab.config.signatures import read_signature
from vitlab.errors import UserError

# What vitlab gives to the targets itself.
FILLED_IN = {
    "data": {"augmentations", "seed"},
    "optimizer": {"params"},
    "scheduler.schedule": {"optimizer"},
    "trainer": {"callbacks", "logger", "plugins", "default_root_dir", "enable_checkpointing"},
}
TARGETS = ("model", "data", "optimizer", "finetune", "scheduler.schedule", "trainer")  # that a run can't do without
COLLECTIONS = ("augment", "callbacks")  # of targets, each under a name of the user's choice
GROUPS = ("model", "data", "augment", "optimizer", "finetune", "scheduler", "trainer", "callbacks", "logger")
SETTINGS = (
    *("name", "run_dir", "seed", "label_smoothing", "compile", "preflight", "matmul_precision", "checkpoint"),
    *("experiment", "debug"),  # groups whose files fill the others
)
PLAIN = {"checkpoint": {"monitor", "mode", "last_every_n_epochs"}, "scheduler": {"schedule", "interval", "monitor"}}
AUTO = {"trainer.precision": "auto"}  # replaced before the target sees it
EXTRAS = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow"}  # packages that an extra of the same name installs
HYDRA_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}


@dataclass(frozen=True)
class Mistake:
    """A path of the config, what is there (`subject`), and what is wrong with it, with the nearest right thing."""

    path: str
    subject: str
    rest: str


@dataclass
class Plain:
    """A config as plain data; what is missing or can't be resolved is left out and named.

    Attributes:
        values: Nested dicts.
        derived: Paths of the values that are interpolations: their owners are checked.
        missing: Paths of the values that must be given, and are not.
        mistakes: What was left out.
    """

    values: dict[str, Any]
    derived: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    mistakes: list[Mistake] = field(default_factory=list)


def find_mistakes(config: DictConfig, overrides: Sequence[str]) -> list[Mistake]:
    """All mistakes of a composed config.

    Args:
        config: Without Hydra's own node; it is left as it is.
        overrides: What the user typed.
    """
    config = copy.deepcopy(config)
    with suppress(UserError, OmegaConfBaseException):  # a target that is missing or can't be found is named below
        adopt_user_network(config, overrides)
    found: list[Mistake] = []
    plain = Plain({})
    plain.values = _resolve(config, "", plain)
    found += plain.mistakes
    found += _unknown_names(config, plain.values)
    for path, node in _targets(plain.values, ""):
        found += _check_target(path, node, plain)
    found += _out_of_range(plain.values, "", plain)
    wrong = {mistake.path for mistake in found}
    for path, sentence in contradictions(_without(plain.values, "", wrong)):
        found.append(Mistake(path, path, f": {sentence}"))
    return list({(mistake.path, mistake.rest): mistake for mistake in found}.values())


def _resolve(node: DictConfig, path: str, plain: Plain) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key in map(str, node):
        inner = _join(path, key)
        if OmegaConf.is_missing(node, key):
            plain.missing.add(inner)
            plain.mistakes.append(Mistake(inner, inner, f" must be given: add {inner}=..."))
            continue
        if OmegaConf.is_interpolation(node, key):
            plain.derived.add(inner)
        try:
            value = node[key]
        except InterpolationToMissingValueError:  # the missing value is named where it stands
            continue
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            plain.mistakes.append(Mistake(inner, inner, f" can't be resolved: {reason}"))
            continue
        if isinstance(value, DictConfig):
            value = _resolve(value, inner, plain)
        elif isinstance(value, ListConfig):
            value = OmegaConf.to_container(value, resolve=True)
        values[key] = value
    return values


def _unknown_names(config: DictConfig, values: Mapping[str, Any]) -> Iterator[Mistake]:
    known = {*GROUPS, *SETTINGS}
    strangers = set(values) - known
    if strangers:
        # A value that others refer to is of use, wherever it stands.
        used = set(re.findall(r"\$\{\s*(\w+)", OmegaConf.to_yaml(config)))
        for name in sorted(strangers - used):
            yield _unknown(name, name, known)
    for group, names in PLAIN.items():
        for name in values.get(group) or {}:
            if name not in names:
                yield _unknown(f"{group}.{name}", name, names)
    for path in TARGETS:
        node = _get(values, path)
        if not isinstance(node, dict) or "_target_" not in node:
            yield Mistake(path, path, " has no _target_: nothing says what to build")
    for group in COLLECTIONS:
        for name, node in (values.get(group) or {}).items():
            if node is not None and not (isinstance(node, dict) and "_target_" in node):
                siblings = {n for n, other in values[group].items() if isinstance(other, dict) and "_target_" in other}
                hint = did_you_mean(name, siblings)
                yield Mistake(
                    f"{group}.{name}", f"{group}.{name}", f" has no _target_: nothing says what to build{hint}"
                )


def _targets(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, value in node.items():
        if isinstance(value, dict):
            inner = _join(path, key)
            if "_target_" in value:
                yield inner, value
            yield from _targets(value, inner)


def _check_target(path: str, node: dict[str, Any], plain: Plain) -> Iterator[Mistake]:
    target = node["_target_"]
    if not isinstance(target, str) or "." not in target:
        yield Mistake(f"{path}._target_", f"{path}._target_={target}", " is no importable name (package.Class)")
        return
    package = EXTRAS.get(target.rpartition(".")[2])
    if package and find_spec(package) is None:
        yield Mistake(f"{path}._target_", path, f" needs the package {package}: pip install -e '.[{package}]'")
    try:
        signature = read_signature(target, path)
    except UserError as error:
        yield Mistake(f"{path}._target_", "", str(error))
        return
    filled_in = FILLED_IN.get(path, set())
    ours = weight_keys(node) if path == "model" else set()
    parameters = {name: p for name, p in signature.parameters.items() if name not in filled_in}
    for key, value in node.items():
        inner = _join(path, key)
        if key in HYDRA_KEYS or key in ours:
            continue
        if key in filled_in:
            yield Mistake(inner, inner, f" can't be set here: vitlab gives it to {target} itself")
        elif key not in parameters and not signature.is_open:
            yield _unknown(inner, key, {*parameters, *ours})
        elif key in parameters and not (inner in plain.derived or rule_for(inner, target) or AUTO.get(inner) == value):
            expected = misfit(value, parameters[key])
            if expected:
                yield Mistake(inner, f"{inner}={_show(value)}", f" must be {expected}")
    there = {*node, *(name for name in parameters if {_join(path, name)} & (plain.missing | plain.derived))}
    lacking = [name for name, parameter in parameters.items() if parameter.required and name not in there]
    if lacking and "_args_" not in node:
        yield Mistake(path, path, f" lacks {', '.join(lacking)}, which {target} needs")


def _out_of_range(node: Mapping[str, Any], path: str, plain: Plain) -> Iterator[Mistake]:
    network = str((plain.values.get("model") or {}).get("_target_", ""))
    for key, value in node.items():
        inner = _join(path, key)
        if isinstance(value, dict):
            yield from _out_of_range(value, inner, plain)
        elif inner not in plain.derived:
            rule = rule_for(inner, network)
            if rule and not rule.holds(value):
                yield Mistake(inner, f"{inner}={_show(value)}", f" must be {rule.words}")


def _without(node: Mapping[str, Any], path: str, wrong: set[str]) -> dict[str, Any]:
    left = {key: value for key, value in node.items() if _join(path, key) not in wrong}
    return {k: _without(v, _join(path, k), wrong) if isinstance(v, dict) else v for k, v in left.items()}


def _unknown(path: str, key: str, known: set[str]) -> Mistake:
    return Mistake(path, f"unknown key '{path}'", did_you_mean(key, known))


def _get(values: Mapping[str, Any], path: str) -> Any:
    node: Any = values
    for key in path.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _show(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
