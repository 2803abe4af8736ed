"""Find every mistake of a composed config at once, before torch is imported."""

import copy
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from vitlab.arguments.hints import hint
from vitlab.config.cross_field_checks import cross_field_mistakes
from vitlab.config.instantiate import (
    COLLECTIONS,
    HYDRA_KEYS,
    fill_collections,
    is_loss_function,
    keep_accepted_keys,
    shipped_nodes,
    target_nodes,
    weight_keys,
)
from vitlab.config.ranges import OPTIONAL, parameter_range
from vitlab.config.ranges import SETTINGS as RANGES
from vitlab.config.signatures import read_signature
from vitlab.config.types import Kind, kind_of
from vitlab.errors import UserError, did_you_mean, nearest

GROUPS = ("model", "data", "augment", "loss", "optimizer", "finetune", "scheduler", "trainer", "callbacks", "logger")
SETTINGS = tuple(dict.fromkeys(path.partition(".")[0] for path in RANGES if path.partition(".")[0] not in GROUPS))
FILLING = ("experiment", "sweep", "debug")  # groups whose files set values of the others
PLAIN = ("checkpoint", "scheduler")  # nodes without a _target_, which vitlab reads itself
TARGETS = ("model", "data", "loss", "optimizer", "finetune", "scheduler.schedule", "trainer")  # every run builds these
# Arguments that vitlab passes to the targets itself.
PASSED = {
    "data": {"augmentations", "seed"},
    "optimizer": {"params"},
    "scheduler.schedule": {"optimizer"},
    "trainer": {"callbacks", "logger", "plugins", "default_root_dir", "enable_checkpointing"},
}
SET_LATER = ("scheduler.schedule.total_steps", "scheduler.schedule.progress")  # null until the run is built
EXTRAS = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow"}  # packages that an extra of the same name installs
# Callbacks of Lightning that break what vitlab promises, the reason, and what to use instead.
REFUSED_CALLBACKS = {
    "BackboneFinetuning": "it unfreezes behind the optimizer: take finetune=freeze_first or finetune=layer_decay",
    "BaseFinetuning": "it freezes nothing by itself: take finetune=freeze_first or finetune=head_only",
    "BasePredictionWriter": "a training predicts nothing: predict.py writes the predictions of a run",
    "BatchSizeFinder": "the batch size belongs to the config: set data.batch_size; preflight=only shows the memory",
    "EMAWeightAveraging": "Lightning would test the raw weights: take callbacks=ema",
    "GradientAccumulationScheduler": "the run must know its number of steps: set trainer.accumulate_grad_batches",
    "LearningRateFinder": "the learning rate belongs to the config: set optimizer.lr, or search it with sweep=lr_wd",
    "ModelPruning": "its masks are lost on resume: prune the trained model with torch.nn.utils.prune",
    "OnExceptionCheckpoint": "vitlab saves last.ckpt itself: see checkpoint.every_minutes, and resume=<run>",
    "SpikeDetection": "its state can't be resumed: take callbacks.nan.action=skip and trainer.gradient_clip_val",
    "StochasticWeightAveraging": "its average comes after the last checkpoint and is lost: take callbacks=ema",
    "ThroughputMonitor": "callbacks.throughput measures images per second, memory and MFU",
    "WeightAveraging": "Lightning would test the raw weights: take callbacks=ema",
}
NO_TARGET = " has no _target_, the class or function to build"


@dataclass(frozen=True)
class Mistake:
    """A mistake in a config: the path, what is there (`subject`), and what is wrong with it (`rest`)."""

    path: str
    subject: str
    rest: str

    def __str__(self) -> str:
        return self.subject + self.rest


def find_mistakes(config: DictConfig, overrides: Sequence[str], *, imports: bool = True) -> list[Mistake]:
    """Find all mistakes of a composed config.

    Args:
        config: Without Hydra's own node; not changed.
        overrides: As given on the command line.
        imports: False for a config that is not trusted yet: nothing that it names is imported.
    """
    config = copy.deepcopy(config)
    fill_collections(config)
    with suppress(UserError, OmegaConfBaseException):  # a missing or unknown target is reported below
        keep_accepted_keys(config, overrides, imports=imports)
    return _Check(config, imports).mistakes()


class _Check:
    """The mistakes of one config."""

    def __init__(self, config: DictConfig, imports: bool) -> None:
        self.config = config
        self.imports = imports
        self.derived: dict[str, str] = {}  # the values that are interpolations: path -> interpolation
        self.missing: set[str] = set()  # the paths of the values that must be given, and are not
        self.found: list[Mistake] = []
        self.values = self._resolve(config, "")  # nested dicts, without what is missing or can't be resolved

    def mistakes(self) -> list[Mistake]:
        self._check_names()
        for path, node in target_nodes(self.values):
            self._check_target(path, node)
        for path, kind in {**RANGES, **OPTIONAL}.items():
            self._check_range(path, kind)
        wrong = {mistake.path for mistake in self.found}
        # A value that refers to a wrong one is not wrong itself, and tells nothing about others.
        sources = {path: set(re.findall(r"[\w.]+", reference)) for path, reference in self.derived.items()}
        follows = {path for path, named in sources.items() if named & wrong}
        self.found = [mistake for mistake in self.found if mistake.path not in follows]
        for path, sentence in cross_field_mistakes(_without(self.values, "", wrong | follows)):
            self._add(path, f": {sentence}")
        return list({(mistake.path, mistake.rest): mistake for mistake in self.found}.values())

    def _add(self, path: str, rest: str, subject: str | None = None) -> None:
        self.found.append(Mistake(path, path if subject is None else subject, rest))

    def _resolve(self, node: DictConfig, path: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        keys: list[Any] = list(node)  # text, or numbers
        for key in keys:
            inner = _join(path, key)
            if OmegaConf.is_missing(node, key):
                self.missing.add(inner)
                self._add(inner, f" must be given: add {inner}=...")
                continue
            if OmegaConf.is_interpolation(node, key):
                self.derived[inner] = str(OmegaConf.to_container(node, resolve=False)[key])  # type: ignore[index]
            try:
                value = node[key]
            except InterpolationToMissingValueError:  # the missing value is reported at its own path
                continue
            except OmegaConfBaseException as error:
                self._add(inner, f" can't be resolved: {str(error).splitlines()[0]}")
                continue
            if isinstance(value, DictConfig):
                value = self._resolve(value, inner)
            elif isinstance(value, ListConfig):
                value = OmegaConf.to_container(value, resolve=True)
            values[key] = value
        return values

    def _check_names(self) -> None:
        """Report the unknown and the missing keys outside of targets."""
        # A value that others refer to is of use, wherever it stands.
        referred_to = set(re.findall(r"\$\{\s*(\w+)", OmegaConf.to_yaml(self.config)))
        for name in sorted(set(self.values) - {*GROUPS, *SETTINGS, *FILLING} - referred_to):
            self._add(name, hint(name, {*GROUPS, *SETTINGS}), f"unknown key '{name}'")
        for name in FILLING:
            if self.values.get(name):
                self._add(name, " takes no effect: its file lacks the first line '# @package _global_'")
        for name in (*GROUPS, *SETTINGS):
            if name not in self.config:
                self._add(name, " is missing: every run needs it")
        for group in PLAIN:
            known = {path.partition(".")[2] for path in (*RANGES, *OPTIONAL) if path.startswith(f"{group}.")}
            node = self.values.get(group)
            if not isinstance(node, dict):
                self._add(group, f" must hold {', '.join(sorted(known))}", f"{group}={_show(node)}")
                continue
            for name in sorted(set(node) - known):
                self._add(f"{group}.{name}", hint(f"{group}.{name}", known), f"unknown key '{group}.{name}'")
            for name in sorted(known - set(self.config[group])):
                if f"{group}.{name}" not in OPTIONAL:
                    self._add(f"{group}.{name}", " is missing")
        for path in TARGETS:
            node = _get(self.values, path)
            if isinstance(node, str):
                rest = f" is a word, not a choice: write '- override /{path}: {node}' under defaults"
                self._add(path, rest, f"{path}={node}")
            elif not isinstance(node, dict) or "_target_" not in node:
                self._add(path, NO_TARGET)
        for group in COLLECTIONS:
            nodes = self.values.get(group) or {}
            if not isinstance(nodes, dict):
                self._add(group, f" must hold entries by name: {group}.<name>._target_=...", f"{group}={_show(nodes)}")
                continue
            if group == "logger" and "_target_" in nodes:  # one alone needs no name
                continue
            with_target = {name for name, node in nodes.items() if isinstance(node, dict) and "_target_" in node}
            for name, node in nodes.items():
                if isinstance(node, dict) and name not in with_target:
                    self._add(f"{group}.{name}", NO_TARGET + did_you_mean(name, with_target))
                elif node is not None and not isinstance(node, dict):
                    self._add(f"{group}.{name}", _keys_hint(f"{group}.{name}"), f"{group}.{name}={_show(node)}")

    def _check_target(self, path: str, node: dict[str, Any]) -> None:
        target = node["_target_"]
        if not isinstance(target, str) or "." not in target:
            self._add(f"{path}._target_", " is no importable name (package.Class)", f"{path}._target_={target}")
            return
        owner, _, name = target.rpartition(".")
        if name in REFUSED_CALLBACKS and owner.startswith("pytorch_lightning.callbacks"):
            self._add(path, f": {name} can't be used: {REFUSED_CALLBACKS[name]}")
            return
        package = EXTRAS.get(target.rpartition(".")[2])
        if package and getattr(find_spec(package), "origin", None) is None:  # without: a folder of that name
            self._add(f"{path}._target_", f' needs the package {package}: pip install -e ".[{package}]"', path)
        if target.startswith("lightning.pytorch."):  # another package, whose classes vitlab's Trainer refuses
            rest = f": write {target.replace('lightning.pytorch', 'pytorch_lightning', 1)}"
            self._add(f"{path}._target_", rest, f"{path}._target_={target}")
            return
        try:
            signature = read_signature(target, path, imports=self.imports)
        except UserError as error:
            self._add(f"{path}._target_", str(error), "")
            return
        passed = PASSED.get(path, set())
        for_weights = weight_keys(node, imports=self.imports) if path == "model" else set()
        parameters = {name: p for name, p in signature.parameters.items() if name not in passed}
        for key in [key for key in node if key not in HYDRA_KEYS | for_weights]:
            inner = _join(path, key)
            if key in passed:
                self._add(inner, f" can't be set here: vitlab passes it to {target} itself")
            elif key not in parameters and not signature.is_open:
                self._add(inner, hint(inner, {*parameters, *for_weights}), f"unknown key '{inner}'")
            elif kind := parameter_range(target, key):
                self._check_range(inner, kind)
            elif (p := parameters.get(key)) and inner not in RANGES and not (p.none_by_default and node[key] is None):
                self._check_range(inner, kind_of(p.annotation, p.module))
        open_names = {name for name in parameters if _join(path, name) in self.missing | set(self.derived)}
        lacking = [name for name, p in parameters.items() if p.required and name not in {*node, *open_names}]
        if path == "loss" and is_loss_function(node, lacking):
            return
        if lacking and "_args_" not in node:
            self._add(path, f" lacks {', '.join(lacking)}, which {target} needs")

    def _check_range(self, path: str, kind: Kind) -> None:
        group, _, key = path.rpartition(".")
        node = _get(self.values, group) if group else self.values
        if not isinstance(node, dict) or key not in node:
            return
        value = node[key]
        is_known_later = value is None and (path in self.derived or path in SET_LATER)
        if not kind.fits(value) and not is_known_later:
            hint = nearest(value, kind.names) if isinstance(value, str) else ""
            self._add(path, f" must be {kind.words}{hint}", f"{path}={_show(value)}")


def _keys_hint(path: str) -> str:
    """What to write instead of `callbacks.nan=skip`: the keys of the node of that name in conf/."""
    node = next((node for where, node in shipped_nodes() if where == path), {})
    keys = []
    for key in node.keys() - HYDRA_KEYS:
        kind = parameter_range(node["_target_"], key)
        keys.append(f"{path}.{key}={'|'.join(kind.names) if kind and kind.names else '...'}")
    return f": {path} takes keys: {', '.join(sorted(keys)) or f'{path}.<key>=...'}; null removes it"


def _without(node: Mapping[str, Any], path: str, wrong: set[str]) -> dict[str, Any]:
    left = {key: value for key, value in node.items() if _join(path, key) not in wrong}
    return {k: _without(v, _join(path, k), wrong) if isinstance(v, dict) else v for k, v in left.items()}


def _get(values: Mapping[str, Any], path: str) -> Any:
    node: Any = values
    for key in path.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _show(value: Any) -> str:
    """The value as typed on the command line; text that looks like a number is in quotes."""
    if isinstance(value, str) and re.fullmatch(r"[-+\d.][-+\d.eE]*", value):
        return f"'{value}'"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
