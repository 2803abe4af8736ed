"""The command line of what works on a run: keys of its own, and overrides of the run's config."""

import sys
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigTypeError

from vitlab.config.check import find_mistakes
from vitlab.config.suggest import did_you_mean
from vitlab.errors import UserError

CONF = Path(__file__).parents[3] / "conf"  # of the checkout that vitlab is installed from

# What a network was trained with does not change with the images it is shown.
FACTS = ("image_size", "stored_size", "interpolation", "num_classes", "classes", "mean", "std", "eval_batch_size")


def read_command(conf: Path, name: str, arguments: Sequence[str]) -> tuple[DictConfig, list[Override]]:
    """Parses `key=value` arguments in Hydra's grammar.

    Args:
        conf: The folder of YAML files.
        name: `<name>.yaml` there declares the command's own keys; `--help` shows it.
        arguments: As typed.

    Returns:
        The command's own values, and the overrides that are meant for the run's config.

    Raises:
        UserError: an argument is no override, or a value that must be given is not.
    """
    file = conf / f"{name}.yaml"
    if {"--help", "-h"} & set(arguments):
        print(file.read_text(encoding="utf-8"), end="")
        sys.exit(0)
    command = OmegaConf.load(file)
    assert isinstance(command, DictConfig)
    OmegaConf.set_struct(command, True)
    own = set(command.keys())  # not `in command`: that leaves out what must still be given
    others = []
    for argument, override in zip(arguments, OverridesParser.create().parse_overrides(list(arguments)), strict=True):
        if override.is_delete() or override.is_add() or override.is_force_add() or override.is_sweep_override():
            raise UserError(f"{argument}: only key=value can be given here")
        if override.key_or_group.split(".")[0] in own:
            OmegaConf.update(command, override.key_or_group, override.value())
        else:
            others.append(override)
    for key in command:
        command[key]  # raises where a mandatory value is missing
    return command, others


def apply_overrides(config: DictConfig, overrides: Sequence[Override], conf: Path, command: DictConfig) -> None:
    """Changes a run's resolved config in place: values (`data.root=x`), and whole groups (`data=image_folder`).

    Its `data.cache_dir` and `data.url` are forgotten, unless they are given.

    Args:
        config: The run's.
        overrides: For it, as `read_command` gives them.
        conf: The folder of YAML files.
        command: The command's own values: a misspelt key may have meant one of those.

    Raises:
        UserError: a key is unknown, or a value is not what its place takes.
        omegaconf.errors.OmegaConfBaseException: a key below the first level is unknown.
        hydra.errors.MissingConfigException: a group has no such option.
    """
    _forget_places(config, conf)
    OmegaConf.set_struct(config, True)
    for override in overrides:
        key, value = override.key_or_group, override.value()
        if isinstance(value, str) and (conf / key).is_dir():
            _replace_group(config, key, value, conf)
        elif key.split(".")[0] not in config:
            raise UserError(f"unknown key '{key}'{did_you_mean(key, {*config.keys(), *command.keys()})}")
        else:
            try:
                OmegaConf.update(config, key, value, merge=True)
            except ConfigTypeError as error:
                raise UserError(f"{override.input_line}: {key} takes {_kind(OmegaConf.select(config, key))}") from error
    typed = tuple(override.key_or_group for override in overrides)
    found = find_mistakes(config, [])
    wrong = [f"{m.subject}{m.rest}" for m in found if m.path.startswith(typed)]
    if wrong:
        raise UserError("; ".join(wrong))


def _forget_places(config: DictConfig, conf: Path) -> None:
    """Where images are downloaded from and decoded to holds where it is typed: somebody else may have written the
    run's config, and would choose what is written on this machine, and where."""
    data = config.get("data")
    if isinstance(data, DictConfig):
        if "cache_dir" in data:
            data.cache_dir = None
        if "url" in data:
            data.url = OmegaConf.select(OmegaConf.load(conf / "data" / "cifar10.yaml"), "url")


def compose_training(overrides: Sequence[str], conf: Path) -> DictConfig:
    """The training config that these overrides come to, outside of a run.

    Raises:
        hydra.errors.CompactHydraException, omegaconf.errors.OmegaConfBaseException: they come to none.
    """
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        return compose("train", list(overrides))


def _replace_group(config: DictConfig, group: str, option: str, conf: Path) -> None:
    chosen = compose_training([f"{group}={option}"], conf)[group]
    before = config[group]
    with open_dict(config):
        config[group] = chosen
    for fact in FACTS if group == "data" else ():
        config.data[fact] = before[fact]
    if group == "trainer":
        config.trainer.precision = before.precision


def _kind(node: object) -> str:
    return "keys and values" if isinstance(node, DictConfig) else "a list"
