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

from vitlab.config.annotations import type_mismatch
from vitlab.config.cross_field_checks import cross_field_mistakes
from vitlab.config.instantiate import keep_accepted_model_keys, weight_keys
from vitlab.config.ranges import RULES, rule_for
from vitlab.config.signatures import read_signature
from vitlab.config.suggest import did_you_mean, nearest
from vitlab.config.types import Kind
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
    *(
        "name",
        "run_dir",
        "init_from",
        "init_weights",
        "seed",
        "label_smoothing",
        "compile",
        "gradient_checkpointing",
        "preflight",
        "matmul_precision",
    ),
    "checkpoint",
)
FILLING = ("experiment", "sweep", "debug")  # groups whose files fill the others
PLAIN = {
    "checkpoint": {"monitor", "mode", "last_every_n_epochs", "every_minutes"},
    "scheduler": {"schedule", "interval", "monitor"},
}
EXTRAS = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow"}  # packages that an extra of the same name installs
# null until the run is there
FILLED_IN_LATER = {"scheduler.schedule.total_steps", "scheduler.schedule.progress"}
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
        derived: Paths of the values that refer to another, and how.
        missing: Paths of the values that must be given, and are not.
        mistakes: What was left out.
    """

    values: dict[str, Any]
    derived: dict[str, str] = field(default_factory=dict)
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
        keep_accepted_model_keys(config, overrides)
    found: list[Mistake] = []
    plain = Plain({})
    plain.values = _resolve(config, "", plain)
    found += plain.mistakes
    found += _unknown_names(config, plain.values)
    found += _missing_names(config, plain.values)
    for path, node in _targets(plain.values, ""):
        found += _check_target(path, node, plain)
    found += _out_of_range(plain.values, "", plain, {mistake.path for mistake in found})
    wrong = {mistake.path for mistake in found}
    found = [mistake for mistake in found if _owner(plain.derived.get(mistake.path)) not in wrong]
    for path, sentence in cross_field_mistakes(_without(plain.values, "", wrong)):
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
            plain.derived[inner] = str(OmegaConf.to_container(node, resolve=False)[key])  # type: ignore[call-overload,index]
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
    strangers = set(values) - {*GROUPS, *SETTINGS, *FILLING}
    if strangers:
        # A value that others refer to is of use, wherever it stands.
        used = set(re.findall(r"\$\{\s*(\w+)", OmegaConf.to_yaml(config)))
        for name in sorted(strangers - used):
            yield _unknown(name, name, {*GROUPS, *SETTINGS})
    for name in FILLING:
        if values.get(name):
            yield Mistake(name, name, " takes no effect: its file lacks the first line '# @package _global_'")
    for group, names in PLAIN.items():
        if isinstance(values.get(group), dict):
            for name in sorted(set(values[group]) - names):
                yield _unknown(f"{group}.{name}", name, names)


def _missing_names(config: DictConfig, values: Mapping[str, Any]) -> Iterator[Mistake]:
    for name in (*GROUPS, *SETTINGS):
        if name not in config:
            yield Mistake(name, name, " is missing: it must be there, for all that runs by it")
    for group, names in PLAIN.items():
        node = values.get(group)
        if not isinstance(node, dict):
            yield Mistake(group, f"{group}={_show(node)}", f" must hold {', '.join(sorted(names))}")
            continue
        for name in sorted(names - set(node)):
            if not OmegaConf.is_missing(config[group], name) and name not in config[group]:
                yield Mistake(f"{group}.{name}", f"{group}.{name}", " is missing")
    for path in TARGETS:
        node = _get(values, path)
        if isinstance(node, str):
            rest = f" is a word, not a choice: under defaults write '- override /{path}: {node}'"
            yield Mistake(path, f"{path}={node}", rest)
        elif not isinstance(node, dict) or "_target_" not in node:
            yield Mistake(path, path, " has no _target_: nothing says what to build")
    for group in COLLECTIONS:
        for name, node in (values.get(group) or {}).items():
            if node is not None and not (isinstance(node, dict) and "_target_" in node):
                yield _no_target(group, name, values[group])


def _no_target(group: str, name: str, parts: Mapping[str, Any]) -> Mistake:
    path, value = f"{group}.{name}", parts[name]
    if isinstance(value, dict):
        siblings = {n for n, other in parts.items() if isinstance(other, dict) and "_target_" in other}
        return Mistake(path, path, f" has no _target_: nothing says what to build{did_you_mean(name, siblings)}")
    keys = [f"{key}={'|'.join(rule.names) or '...'}" for key, rule in RULES.items() if key.startswith(f"{path}.")]
    rest = f": {path} takes keys: {', '.join(keys) or f'{path}.<key>=...'}; null leaves it out"
    return Mistake(path, f"{path}={_show(value)}", rest)


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
        elif key in parameters and not (_is_open(inner, value, plain) or rule_for(inner, target)):
            expected = type_mismatch(value, parameters[key])
            if expected:
                yield _misfit(inner, value, expected)
    there = {*node, *(name for name in parameters if _join(path, name) in plain.missing | set(plain.derived))}
    lacking = [name for name, parameter in parameters.items() if parameter.required and name not in there]
    if lacking and "_args_" not in node:
        yield Mistake(path, path, f" lacks {', '.join(lacking)}, which {target} needs")


def _out_of_range(node: Mapping[str, Any], path: str, plain: Plain, wrong: set[str]) -> Iterator[Mistake]:
    network = str(_get(plain.values, "model._target_"))
    for key, value in node.items():
        inner = _join(path, key)
        rule = rule_for(inner, network)
        if rule is None and isinstance(value, dict):
            yield from _out_of_range(value, inner, plain, wrong)
        elif rule and not (rule.fits(value) or inner in wrong or _is_open(inner, value, plain)):
            yield _misfit(inner, value, rule)


def _is_open(path: str, value: Any, plain: Plain) -> bool:
    """Whether a value is known later: the number of classes, when the images are read."""
    return value is None and (path in plain.derived or path in FILLED_IN_LATER)


def _owner(reference: str | None) -> str | None:
    """`data.image_size` of `${data.image_size}` and of `${oc.select:data.image_size,32}`."""
    match = re.fullmatch(r"\$\{\s*(?:oc\.select:)?([\w.]+)\s*(?:,[^}]*)?\}", reference or "")
    return match[1] if match else None


def _misfit(path: str, value: Any, expected: Kind) -> Mistake:
    hint = nearest(value, expected.names) if isinstance(value, str) else ""
    return Mistake(path, f"{path}={_show(value)}", f" must be {expected.words}{hint}")


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
    """As one types it: what looks like a number and is text has its quotes."""
    if isinstance(value, str) and re.fullmatch(r"[-+\d.][-+\d.eE]*", value):
        return f"'{value}'"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
