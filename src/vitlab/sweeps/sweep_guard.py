"""List the jobs of a sweep or search, and check them before the first one trains."""

from collections.abc import Mapping, Sequence
from itertools import compress, product
from typing import Any

from hydra import initialize_config_dir
from hydra.core.override_parser.types import IntervalSweep
from hydra.errors import OverrideParseException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write

from vitlab.arguments.command import parse_overrides
from vitlab.config.compose import CONF, explain, job_mistakes, refuse, typed_overrides
from vitlab.errors import UserError
from vitlab.runs.run_guard import exit_on_error


class SweepGuard(Callback):
    """Hydra's callback before a sweep or search: refuses it if one of its jobs has a mistake."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        sweeper, typed = config.hydra.sweeper, typed_overrides(config.hydra)
        params: Any = OmegaConf.to_container(sweeper.params) if sweeper.get("params") else {}
        when: Any = OmegaConf.to_container(sweeper.when) if sweeper.get("when") else {}
        with exit_on_error():
            if "n_trials" in sweeper:
                _check_pruner(sweeper.get("pruner") or {})
                jobs = covering_jobs(params, when, typed)
            else:
                left = without_given(params, typed)
                if left != params:  # Hydra's sweeper takes `++key` and `key` for different keys
                    with read_write(sweeper):
                        sweeper.params = left
                jobs = sweep_jobs([*(f"{key}={value}" for key, value in left.items()), *typed])
            found = [o for o in config.hydra.overrides.hydra if o.startswith("hydra.searchpath=")]  # folders of choices
            refuse([line for job in jobs for line in job_mistakes([*job, *found], config.hydra.job.config_name)])


def _check_pruner(pruner: Mapping[str, Any]) -> None:
    """Raises UserError if the pruner needs the length of a run in epochs, and there is none."""
    longest = pruner.get("max_resource", "auto")
    if longest != "auto" and (not isinstance(longest, int) or longest < 1):
        raise UserError(
            f"hydra.sweeper.pruner.max_resource={'null' if longest is None else longest}: the pruner must know the "
            "number of epochs: give trainer.max_epochs, or take hydra/sweeper/pruner=median or none"
        )


def composition_mistakes(arguments: Sequence[str]) -> list[str]:
    """Describe each argument that keeps the config, or that of a job of a sweep, from composing, and each mistake in
    what is left; empty if the arguments are more than overrides."""
    overrides = [argument for argument in arguments if argument not in ("-m", "--multirun")]
    if any(argument.startswith("-") for argument in overrides):
        return []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            jobs = [overrides] if len(overrides) == len(arguments) else sweep_jobs(overrides)
        except (UserError, OverrideParseException) as error:
            return [explain(error)]
        return [line for job in jobs for line in job_mistakes(job)]


def sweep_jobs(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of a sweep over `key=a,b`: all combinations. UserError for an interval, which only a
    search takes; OverrideParseException if an argument is no override."""
    for override in parse_overrides(overrides):
        if isinstance(override.value(), IntervalSweep):
            raise UserError(f"{override.input_line}: only a search takes an interval: add hydra/sweeper=optuna")
    return [list(job) for job in product(*_choices(overrides))]


def covering_jobs(
    params: Mapping[str, Any], when: Mapping[str, Mapping[str, Any]], overrides: Sequence[str]
) -> list[list[str]]:
    """The overrides of some jobs of a search that cover each listed value and both ends of each interval.

    `params` and `when` are those of the search's config; overrides on the command line replace both.
    """
    always = [*(f"{key}={value}" for key, value in without_given(params, overrides).items()), *overrides]
    jobs = []
    for condition, keys in [("", {}), *when.items()]:
        more = [condition, *(f"{key}={value}" for key, value in without_given(keys, overrides).items())]
        choices = _choices([*always, *filter(None, more)])
        count = max(map(len, choices), default=1)
        jobs += [[values[min(job, len(values) - 1)] for values in choices] for job in range(count)]
    return jobs


def without_given(params: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The keys of a search or sweep that are not given on the command line, where they may have a `+` or `~`."""
    given = {(override.key_or_group, override.package) for override in parse_overrides(overrides)}
    own = parse_overrides([f"{key}={value}" for key, value in params.items()])
    kept = [(override.key_or_group, override.package) not in given for override in own]
    return dict(compress(params.items(), kept))


def _choices(overrides: Sequence[str]) -> list[list[str]]:
    """For each key its possible overrides: `key=a`, `key=b`; for an interval its ends. A key's last override wins."""
    choices = []
    for key, override in {override.get_key_element(): override for override in parse_overrides(overrides)}.items():
        if isinstance(value := override.value(), IntervalSweep):
            values = [str(value.start), str(value.end)]
        elif override.is_sweep_override():
            values = list(override.sweep_string_iterator())
        else:
            values = [override.get_value_element_as_str()]
        if not values:
            raise UserError(f"{override.input_line} matches nothing: there is no value to run")
        choices.append([f"{key}={text}" for text in values])
    return choices
