"""Read the arguments of a command that is not composed by Hydra."""

import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf

from vitlab.arguments.entry_points import as_typed
from vitlab.arguments.hints import completions, hint, without_dashes
from vitlab.arguments.literals import literal
from vitlab.errors import UserError
from vitlab.files import CONF


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    hydra = GlobalHydra.instance()
    loader = hydra.config_loader() if hydra.is_initialized() else None  # for glob(*), which asks for the choices
    return OverridesParser.create(loader).parse_overrides(list(map(literal, overrides)))


def check_switches(command: DictConfig, *keys: str) -> None:
    """UserError if the value of one of these keys is neither true nor false."""
    for key in keys:
        if not isinstance(command[key], bool):
            raise UserError(f"{key}={command[key]} must be true or false")


def training_arguments(arguments: Sequence[str], *, sweep: bool = False) -> list[str]:
    """The `key=value` arguments of a training as Hydra takes them: paths and names quoted, and with `++` the keys of a
    new `_target_`; whether it takes them is checked later."""
    given = {argument.partition("=")[0] for argument in arguments}
    new = set() if given & {"resume", "reproduce"} else {key.lstrip("+") for key in given if key.endswith("._target_")}
    nodes = tuple(key.removesuffix("_target_") for key in new)
    arguments = [f"++{argument}" if nodes and argument.startswith(nodes) else argument for argument in arguments]
    return [literal(argument, sweep=sweep) for argument in arguments]


def read_command(name: str, arguments: Sequence[str], *, additions: bool = False) -> tuple[DictConfig, list[Override]]:
    """Parse the `key=value` arguments of a command, in Hydra's grammar; `--help` prints its keys and exits.

    Returns the values of the command's own keys, which `conf/<name>.yaml` declares, and the overrides of the config.
    With `additions` those may have new keys, `+key=value`. A command that takes `images=` takes other arguments as
    images too, as a shell makes them of a pattern.

    Raises:
        UserError: an argument is no override, or a required value is missing.
    """
    file = CONF / f"{name}.yaml"
    if {"--help", "-h"} & set(arguments):
        print(as_typed(file.read_text(encoding="utf-8")), end="")
        sys.exit(0)
    command = OmegaConf.load(file)
    assert isinstance(command, DictConfig)
    OmegaConf.set_struct(command, True)
    own = set(map(str, command.keys()))  # not `in command`: that leaves out required values
    plain: Any = OmegaConf.to_container(command)
    open_lists = {key for key in own if plain[key] == []}  # of any texts
    if "-sc" in arguments:
        print(*completions(os.environ["COMP_LINE"], own))
        sys.exit(0)
    if flags := without_dashes(arguments, own=own):
        raise UserError(flags)
    files = [a for a in arguments if "images" in own and (os.path.exists(a) or not re.match(r"[^ ]+=", a))]  # noqa: PTH110
    arguments, others = [a for a in arguments if a not in files], []
    for argument, override in zip(arguments, parse_overrides(arguments), strict=True):
        is_own, is_new = override.key_or_group.split(".")[0] in own, override.is_add() or override.is_force_add()
        if override.is_delete() or override.is_sweep_override() or (is_new and (is_own or not additions)):
            raise UserError(f"{argument}: only key=value can be given here")
        if is_own:
            value = override.value()
            if override.key_or_group in open_lists:
                texts = value if isinstance(value, list) else [] if value in (None, "") else [value]
                value = list(map(str, texts))  # of tags=a too: most shells want [ ] quoted
            OmegaConf.update(command, override.key_or_group, value)
        else:
            others.append(override)
    if files:
        given = "" if OmegaConf.is_missing(command, "images") else command.images
        listed = list(given) if isinstance(given, ListConfig) else [given]
        command.images = [*(image for image in listed if image), *files]
    missing = next((key for key in command if OmegaConf.is_missing(command, key)), None)
    is_unnamed = {"run", "checkpoint"} <= own and command.run is None and command.checkpoint in ("best", "last")
    if missing or is_unnamed:
        known = {*own, *map(str, OmegaConf.load(CONF / "train.yaml")), *(folder.name for folder in CONF.iterdir())}
        for key in (override.key_or_group for override in others if override.key_or_group.split(".")[0] not in known):
            raise UserError(f"unknown key '{key}'{hint(key, own)}")  # often the one that is missing
    if missing:
        raise UserError(f"{missing!s} must be given: add {missing!s}=...")
    return command, others
