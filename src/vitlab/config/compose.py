"""What keeps a config from composing, and what is wrong with it once composed, in sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import CompactHydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from vitlab.config.check import find_mistakes
from vitlab.config.command import CONF
from vitlab.config.sources import source_file_of
from vitlab.config.suggest import did_you_mean, nearest
from vitlab.errors import UserError

NOT_COMPOSED = (CompactHydraException, OmegaConfBaseException, YAMLError)


def describe_mistakes(config: DictConfig) -> list[str]:
    """A sentence for each mistake of a composed config (with Hydra's own node) that says where it stands."""
    overrides = typed_overrides(config.hydra)
    job = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    lines = []
    for mistake in find_mistakes(job, overrides):
        file = source_file_of(mistake.path, CONF, config.hydra.job.config_name, overrides)
        lines.append(f"{mistake.subject}{f' in {file}' if file else ''}{mistake.rest}")
    return lines


def typed_overrides(hydra: Any) -> list[str]:
    """What the user typed, by Hydra's node; unresolved, for `optimizer.lr=${x}` is an interpolation itself."""
    overrides: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    return list(overrides)


def sweep_jobs(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of a sweep over `key=a,b`."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [list(job) for job in BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]]


def covering_jobs(
    params: Mapping[str, Any], when: Mapping[str, Mapping[str, Any]], overrides: Sequence[str]
) -> list[list[str]]:
    """The overrides of some jobs of a search, in which each listed value and each end of an interval comes.

    Args:
        params, when: Of the search's config, as `key: what is chosen from`.
        overrides: As typed; they stand above `params`.
    """
    parse = OverridesParser.create().parse_overrides
    found = {o.get_key_element(): o for o in parse([*_lines(params), *overrides])}
    jobs = _in_turn(list(found.values()))
    for condition, keys in when.items():
        jobs += _in_turn([*found.values(), *parse([condition, *_lines(keys)])])
    return jobs


def _lines(params: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in params.items()]


def _in_turn(overrides: Sequence[Override]) -> list[list[str]]:
    values = {override.get_key_element(): _values(override) for override in overrides}
    count = max(map(len, values.values()), default=1)
    return [[f"{key}={v[min(i, len(v) - 1)]}" for key, v in values.items()] for i in range(count)]


def _values(override: Override) -> list[str]:
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [str(value.start), str(value.end)]
    return (
        list(override.sweep_string_iterator())
        if override.is_sweep_override()
        else [override.get_value_element_as_str()]
    )


def composition_mistakes(arguments: Sequence[str]) -> list[str]:
    """A sentence for each argument that keeps the config, or that of any job of a sweep, from composing, and for each
    mistake in what is left of it.

    Nothing where the arguments are more than overrides.
    """
    overrides = [argument for argument in arguments if argument not in ("-m", "--multirun")]
    if any(argument.startswith("-") for argument in overrides):
        return []
    if len(overrides) == len(arguments):
        return _mistakes_of_a_job(overrides)
    try:
        jobs = sweep_jobs(overrides)
    except OverrideParseException as error:
        return [explain(error)]
    return list(dict.fromkeys(line for job in jobs for line in _mistakes_of_a_job(job)))


def _mistakes_of_a_job(arguments: Sequence[str]) -> list[str]:
    overrides, lines = list(arguments), []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        while True:
            try:
                config = compose("train", overrides, return_hydra_config=True)
            except NOT_COMPOSED as error:
                lines.append(explain(error))
                culprit = _culprit(error, overrides)
                if culprit is None:
                    return lines
                overrides.remove(culprit)
            else:
                HydraConfig.instance().set_config(config)
                return lines + describe_mistakes(config)


def _culprit(error: Exception, overrides: Sequence[str]) -> str | None:
    """The override that an error of Hydra's is about."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(error, OverrideParseException):
        return str(error.override)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return next((o for o in overrides if o.lstrip("+") == f"{group}={option}"), None)
    if str(error).startswith("Ambiguous value for argument"):
        return str(error).split("'")[1]
    key = str(getattr(cause, "full_key", None))
    return next((o for o in overrides if o.lstrip("+~").split("=")[0].split("@")[0] == key), None)


def explain(error: Exception) -> str:
    """One sentence for an error of the user's, with the nearest right thing where there is one."""
    if isinstance(error, UserError):
        return str(error)
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if not group:
            return f"there is no config file '{option}'"
        options = list(error.options or [])
        return f"there is no {group}={option}{nearest(option, options)} ({group}: {', '.join(options)})"
    if isinstance(cause, MissingMandatoryValue):
        return f"{cause.full_key} must be given: add {cause.full_key}=..."
    if isinstance(cause, OmegaConfBaseException) and "is not in struct" in str(cause):
        known = list(cause.parent_node) if isinstance(cause.parent_node, DictConfig) else []
        return f"unknown key '{cause.full_key}'{did_you_mean(str(cause.key), known)}"
    if str(error).startswith("Ambiguous value for argument"):
        argument = str(error).split("'")[1]
        return f"{argument} has several values: add -m to sweep over them, or write key=[a,b] for a list"
    if isinstance(error, YAMLError):
        mark: Any = getattr(error, "problem_mark", None)
        where = f"{mark.name}, line {mark.line + 1}" if mark else "a config file"
        return f"{where} is no YAML: {getattr(error, 'problem', None) or error}"
    if isinstance(error, OverrideParseException):
        return f"'{error.override}' is not of the form key=value ({next(iter(str(error.message).splitlines()), '')})"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__
