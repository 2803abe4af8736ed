"""What a search chooses from, in Hydra's grammar for sweeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import BaseTrial, FixedTrial

from vitlab.errors import UserError

Distributions = dict[str, BaseDistribution]


@dataclass(frozen=True)
class SearchSpace:
    """What the trials of a search have in common, and what tells them apart.

    Args:
        fixed: Overrides of every trial.
        chosen: Key -> where its values come from.
        when: Override -> keys that are chosen only in trials that have it.
    """

    fixed: Sequence[str]
    chosen: Distributions
    when: Mapping[str, Distributions]

    @property
    def keys(self) -> set[str]:
        return {*self.chosen, *(key for distributions in self.when.values() for key in distributions)}

    def first(self) -> list[str]:
        """Overrides of one trial."""
        return self.suggest(FixedTrial({key: first_of(where) for key, where in self._all().items()}))

    def describe(self) -> list[str]:
        """A line for each key."""
        return sorted(f"{key} {where}" for key, where in self._all().items())

    def _all(self) -> Distributions:
        """Under the names that Optuna knows them by; a key can have other values with another condition."""
        conditional = {f"{key} with {c}": where for c, keys in self.when.items() for key, where in keys.items()}
        return {**self.chosen, **conditional}

    def suggest(self, trial: BaseTrial) -> list[str]:
        """The overrides of a trial; what it has chosen before a restart stays."""
        overrides = [*self.fixed, *(f"{key}={_suggest(trial, key, d)}" for key, d in self.chosen.items())]
        for condition, distributions in self.when.items():
            if condition in overrides:
                overrides += [
                    f"{key}={_suggest(trial, f'{key} with {condition}', d)}" for key, d in distributions.items()
                ]
        return overrides


def read_space(
    params: Mapping[str, object], typed: Sequence[str], when: Mapping[str, Mapping[str, object]]
) -> SearchSpace:
    """Reads `choice(a,b)`, `a,b`, `range(2,10,2)`, `interval(0.1,0.9)`, `int(interval(1,8))`, `tag(log,interval(...))`.

    Args:
        params: Of `hydra.sweeper.params`.
        typed: Overrides of the command line; they stand above `params`.
        when: Of `hydra.sweeper.when`.

    Raises:
        UserError: there is nothing to choose, or an interval has no logarithm.
        hydra.errors.HydraException: something is not in Hydra's grammar.
    """
    parse = OverridesParser.create().parse_overrides
    found = {o.get_key_element(): o for o in parse([*(f"{key}={value}" for key, value in params.items()), *typed])}
    conditional = {c: parse([f"{key}={value}" for key, value in keys.items()]) for c, keys in when.items()}
    space = SearchSpace(
        fixed=[f"{key}={o.get_value_element_as_str()}" for key, o in found.items() if not o.is_sweep_override()],
        chosen={key: distribution(o) for key, o in found.items() if o.is_sweep_override()},
        when={c: {o.get_key_element(): distribution(o) for o in overrides} for c, overrides in conditional.items()},
    )
    if not space.chosen:
        raise UserError("a search needs something to choose: optimizer.lr='tag(log,interval(1e-4,1e-2))', say")
    return space


def distribution(override: Override) -> BaseDistribution:
    """Where the values of a key come from; ranges without their end, as Hydra has them."""
    sweep = override.value()
    logarithmic = "log" in getattr(sweep, "tags", ())
    if isinstance(sweep, IntervalSweep):
        low, high = sweep.start, sweep.end
        assert low is not None
        assert high is not None
        if low >= high or (logarithmic and low <= 0):
            raise UserError(f"{override.input_line}: from {low} to {high} there is no interval to choose from")
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=logarithmic)
        return FloatDistribution(low, high, log=logarithmic)
    values = list(override.sweep_string_iterator())
    if isinstance(sweep, RangeSweep) and isinstance(sweep.start, int) and isinstance(sweep.step, int):
        numbers = sorted(int(value) for value in values)
        return IntDistribution(numbers[0], numbers[-1], step=abs(sweep.step))
    return CategoricalDistribution(values)


def first_of(where: BaseDistribution) -> Any:
    """One of its values."""
    return where.choices[0] if isinstance(where, CategoricalDistribution) else where.low  # type: ignore[attr-defined]


def _suggest(trial: BaseTrial, key: str, where: BaseDistribution) -> str:
    if isinstance(where, FloatDistribution):
        return repr(trial.suggest_float(key, where.low, where.high, log=where.log))
    if isinstance(where, IntDistribution):
        return str(trial.suggest_int(key, where.low, where.high, step=where.step, log=where.log))
    assert isinstance(where, CategoricalDistribution)
    return str(trial.suggest_categorical(key, where.choices))
