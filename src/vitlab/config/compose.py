"""Compose configs, and explain what keeps a config from composing."""

import re
import sys
from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote
from hydra.errors import CompactHydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from vitlab.arguments.entry_points import as_typed
from vitlab.arguments.hints import hint, hint_choice
from vitlab.arguments.literals import describe_several, quote
from vitlab.config.check import find_mistakes
from vitlab.config.signatures import read_signature
from vitlab.errors import UserError
from vitlab.files import CONF
from vitlab.system import quote_for_shell

NOT_COMPOSED = (CompactHydraException, OmegaConfBaseException, YAMLError)


def compose_training(overrides: Sequence[str]) -> DictConfig:
    """Compose a training config outside of a run.

    Raises:
        hydra.errors.CompactHydraException, omegaconf.errors.OmegaConfBaseException: an override is wrong.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


def typed_overrides(hydra: Any) -> list[str]:
    """The overrides on the command line, from Hydra's node; unresolved, as `optimizer.lr=${x}` is an interpolation."""
    overrides: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    return list(overrides)


def describe_mistakes(config: DictConfig) -> list[str]:
    """Describe each mistake of a composed config (with Hydra's own node) in a sentence that names the file."""
    overrides = typed_overrides(config.hydra)
    job = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    lines = []
    for mistake in find_mistakes(job, overrides):
        file = _source_file_of(mistake.path, config.hydra.job.config_name, overrides)
        lines.append(f"{mistake.subject}{f' in {file}' if file else ''}{mistake.rest}")
    return lines


def _source_file_of(path: str, config_name: str, overrides: Sequence[str]) -> str | None:
    """The file in `conf/` that sets the value at a path; None if the command line or no file does."""
    keys = [_key(override) for override in overrides]
    if any(f"{path}.".startswith(f"{key}.") or key.startswith(f"{path}.") for key in keys if not (CONF / key).is_dir()):
        return None
    loader = GlobalHydra.instance().config_loader()
    defaults = loader.compute_defaults_list(config_name, list(overrides), RunMode.RUN).defaults
    for default in reversed(list(defaults)):  # the last one that sets it wins
        file, package = CONF / f"{default.config_path}.yaml", default.package or ""
        prefix = "" if package in ("", "_global_") else f"{package}."
        if file.is_file() and path.startswith(prefix):
            node: Any = OmegaConf.to_container(OmegaConf.load(file))
            for key in path.removeprefix(prefix).split("."):
                node = node[key] if isinstance(node, dict) and key in node else LookupError
            if node is not LookupError:
                return str(file.relative_to(CONF.parent))
    return None


def _key(override: str) -> str:
    return override.lstrip("+~").split("=")[0].split("@")[0]


def refuse(mistakes: Sequence[str]) -> None:
    """Print each mistake once, and end the process with the status of wrong input; without mistakes do nothing."""
    for mistake in dict.fromkeys(mistakes):
        print(f"error: {as_typed(mistake)}", file=sys.stderr)
    if mistakes:
        sys.exit(2)


def job_mistakes(overrides: Sequence[str], config_name: str = "train") -> list[str]:
    """Describe each override that keeps a config from composing, and each mistake in what is left of it.

    Called inside of Hydra: in a job, or with `initialize_config_dir`.
    """
    left, lines = list(overrides), []
    while True:
        try:
            config = compose(config_name, left, return_hydra_config=True)
            break
        except NOT_COMPOSED as error:
            sentence, subject = _diagnose(error)
            lines.append(sentence)
            culprit = next((o for o in left if subject and subject in (o, o.lstrip("+"), _key(o))), None)
            if culprit is None:
                return lines
            left.remove(culprit)
    HydraConfig.instance().set_config(config)
    return lines + describe_mistakes(config)


def explain(error: Exception) -> str:
    """Explain an error in the user's input in one sentence, with the nearest right word if there is one."""
    return _diagnose(error)[0]


def _diagnose(error: Exception) -> tuple[str, str]:
    """The sentence for an error, and the override, or the key of the override, that it is about."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    key = str(getattr(cause, "full_key", None) or "")
    match error, cause:
        case UserError(), _:
            return str(error), ""
        case OverrideParseException(override=text, message=message), _:
            name, equals, value = str(text).partition("=")
            noise = ("Error parsing", "Lexer", "See http", " ")
            reason = next((f" ({line})" for line in str(message).splitlines() if not line.startswith(noise)), "")
            if not equals or not re.fullmatch(r"[-+~\w./@]+", name, re.ASCII):
                return f"'{text}' is not of the form key=value", str(text)
            quoted = quote_for_shell(f"{name}={quote(value, Quote.double)}")
            return f"'{text}' is not of the form key=value{reason}; for this very text type {quoted}", str(text)
        case MissingConfigException(missing_cfg_file=str() as file, options=options), _:
            group, _, option = file.rpartition("/")
            if not group:
                return f"there is no config file '{option}'", ""
            return f"there is no {group}={option}{hint_choice(group, option, options or [])}", f"{group}={option}"
        case _, MissingMandatoryValue():
            return f"{key} must be given: add {key}=...", key
        case _, OmegaConfBaseException(parent_node=parent) if "is not in struct" in str(cause):
            siblings = [key for key in parent if key != "hydra"] if isinstance(parent, DictConfig) else []
            target = str(parent["_target_"]) if "_target_" in siblings else ""
            if target and str(cause.key) in read_signature(target, key, imports=False).parameters:
                return f"{key} is in no file, but {target} takes it: write +{key}=...", key
            return f"unknown key '{key}'{hint(key, siblings)}", key
        case YAMLError(), _:
            mark: Any = getattr(error, "problem_mark", None)
            where = f"{mark.name}, line {mark.line + 1}" if mark else "a config file"
            return f"{where} is no YAML: {getattr(error, 'problem', None) or error}", ""
    if twice := re.match(r"Multiple values for (\w+)\. .*: (\S+)'", str(error)):
        return f"+{twice[1]}={twice[2]}: write {twice[1]}={twice[2]}, without +", f"{twice[1]}={twice[2]}"
    if str(error).startswith("Ambiguous value for argument"):
        argument = str(error).split("'")[1]
        several = f"{argument} has several values: add -m to sweep over them, or write {describe_several(argument)}"
        return several, argument
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__, key
