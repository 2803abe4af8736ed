"""The search space of a search, written in Hydra's sweep grammar."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial

from vitlab.errors import UserError


@dataclass(frozen=True)
class Parameter:
    """A key whose value each trial chooses.

    Args:
        key: In the config.
        values: Distribution of its values.
        condition: Override that a trial must have to choose it; "": always.
    """

    key: str
    values: BaseDistribution
    condition: str = ""

    @property
    def name(self) -> str:
        """Its name in the study, where a key can have other values under another condition."""
        return f"{self.key} with {self.condition}" if self.condition else self.key

    def suggest(self, trial: BaseTrial) -> str:
        """Return the override with the value that a trial chooses."""
        value: object
        if isinstance(self.values, FloatDistribution):
            value = repr(trial.suggest_float(self.name, self.values.low, self.values.high, log=self.values.log))
        elif isinstance(self.values, IntDistribution):
            low, high, step = self.values.low, self.values.high, self.values.step
            value = trial.suggest_int(self.name, low, high, step=step, log=self.values.log)
        else:
            assert isinstance(self.values, CategoricalDistribution)
            value = trial.suggest_categorical(self.name, self.values.choices)
        return f"{self.key}={value}"


@dataclass(frozen=True)
class SearchSpace:
    """The overrides that all trials share, and the parameters that each trial chooses."""

    fixed: Sequence[str]
    parameters: Sequence[Parameter]

    def suggest(self, trial: BaseTrial) -> list[str]:
        """Return the overrides of a trial; values that it chose before a restart stay."""
        overrides = list(self.fixed)
        for parameter in self.parameters:
            if not parameter.condition or parameter.condition in overrides:
                overrides.append(parameter.suggest(trial))
        return overrides

    def describe(self) -> list[str]:
        """Return a line for each parameter, to compare search spaces with."""
        return sorted(f"{parameter.name} {parameter.values}" for parameter in self.parameters)


def read_space(
    params: Mapping[str, object], given: Sequence[str], when: Mapping[str, Mapping[str, object]]
) -> SearchSpace:
    """Read `choice(a,b)`, `a,b`, `range(2,10,2)`, `interval(0.1,0.9)`, `int(interval(1,8))`, `tag(log,interval(...))`.

    Args:
        params: `hydra.sweeper.params`.
        given: Overrides of the command line; they replace those of `params`.
        when: `hydra.sweeper.when`.

    Raises:
        UserError: No key has several values, or an interval is empty or has no logarithm.
        hydra.errors.HydraException: A value is not in Hydra's grammar.
    """
    parse = OverridesParser.create().parse_overrides
    found = {o.get_key_element(): o for o in parse([*(f"{key}={value}" for key, value in params.items()), *given])}
    fixed = [f"{key}={o.get_value_element_as_str()}" for key, o in found.items() if not o.is_sweep_override()]
    parameters = [Parameter(key, read_distribution(o)) for key, o in found.items() if o.is_sweep_override()]
    if not parameters:
        raise UserError("a search needs a key with several values, e.g. optimizer.lr='tag(log,interval(1e-4,1e-2))'")
    for condition, keys in when.items():
        for override in parse([f"{key}={value}" for key, value in keys.items()]):
            parameters.append(Parameter(override.get_key_element(), read_distribution(override), condition))
    return SearchSpace(fixed, parameters)


def read_distribution(override: Override) -> BaseDistribution:
    """Return Optuna's distribution for an override; the end of a range is excluded, as in Hydra."""
    sweep = override.value()
    log = "log" in getattr(sweep, "tags", ())
    if isinstance(sweep, IntervalSweep):
        low, high = sweep.start, sweep.end
        if low is None or high is None or low >= high or (log and low <= 0):
            raise UserError(f"{override.input_line}: from {low} to {high} there is no interval to choose from")
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(low, high, log=log)
    values = list(override.sweep_string_iterator())
    if isinstance(sweep, RangeSweep) and isinstance(sweep.start, int) and isinstance(sweep.step, int):
        numbers = sorted(int(value) for value in values)
        return IntDistribution(numbers[0], numbers[-1], step=abs(sweep.step))
    return CategoricalDistribution(values)
