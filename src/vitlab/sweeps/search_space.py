"""The search space of a search, written in Hydra's sweep grammar."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial, FixedTrial

from vitlab.errors import UserError

Distributions = dict[str, BaseDistribution]


@dataclass(frozen=True)
class SearchSpace:
    """The overrides that all trials share, and the values that they choose from.

    Args:
        fixed: Overrides of every trial.
        chosen: Key -> distribution of its values.
        when: Override -> keys that are chosen only in trials with this override.
    """

    fixed: Sequence[str]
    chosen: Distributions
    when: Mapping[str, Distributions]

    def suggest(self, trial: BaseTrial) -> list[str]:
        """Return the overrides of a trial; values that it chose before a restart stay."""
        overrides = [*self.fixed, *(f"{key}={_suggest(trial, key, d)}" for key, d in self.chosen.items())]
        for condition, distributions in self.when.items():
            if condition in overrides:
                overrides += [
                    f"{key}={_suggest(trial, f'{key} with {condition}', d)}" for key, d in distributions.items()
                ]
        return overrides

    def first(self) -> list[str]:
        """Return the overrides of an arbitrary trial."""
        return self.suggest(FixedTrial({name: _first_value(d) for name, d in self._by_parameter().items()}))

    def describe(self) -> list[str]:
        """Return a line for each parameter, to compare search spaces with."""
        return sorted(f"{name} {distribution}" for name, distribution in self._by_parameter().items())

    def _by_parameter(self) -> Distributions:
        """Name the distributions as in the study, where a key can have one for each condition."""
        conditional = {f"{key} with {c}": d for c, keys in self.when.items() for key, d in keys.items()}
        return {**self.chosen, **conditional}


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
    conditional = {c: parse([f"{key}={value}" for key, value in keys.items()]) for c, keys in when.items()}
    space = SearchSpace(
        fixed=[f"{key}={o.get_value_element_as_str()}" for key, o in found.items() if not o.is_sweep_override()],
        chosen={key: read_distribution(o) for key, o in found.items() if o.is_sweep_override()},
        when={c: {o.get_key_element(): read_distribution(o) for o in keys} for c, keys in conditional.items()},
    )
    if not space.chosen:
        raise UserError("a search needs a key with several values, e.g. optimizer.lr='tag(log,interval(1e-4,1e-2))'")
    return space


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


def _first_value(distribution: BaseDistribution) -> object:
    if isinstance(distribution, FloatDistribution | IntDistribution):
        return distribution.low
    assert isinstance(distribution, CategoricalDistribution)
    return distribution.choices[0]


def _suggest(trial: BaseTrial, name: str, distribution: BaseDistribution) -> str:
    if isinstance(distribution, FloatDistribution):
        return repr(trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log))
    if isinstance(distribution, IntDistribution):
        low, high, step = distribution.low, distribution.high, distribution.step
        return str(trial.suggest_int(name, low, high, step=step, log=distribution.log))
    assert isinstance(distribution, CategoricalDistribution)
    return str(trial.suggest_categorical(name, distribution.choices))
