"""Group runs over their seeds, and rank the groups by validation."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, nan
from statistics import fmean
from typing import Any

from vitlab.config.check import FILLING
from vitlab.config.ranges import mode_of
from vitlab.leaderboard.results import Result
from vitlab.leaderboard.statistics import Comparison, Summary, compare, describe_comparison, holm, summarise

DEFAULT = ("val/acc", "max")
UNSET = "-"
RUN_KEYS = {"seed", "name", "run_dir"}  # differ between runs of the same experiment


@dataclass(frozen=True)
class Row:
    """Runs that differ only in their seed.

    Attributes:
        results: One per seed, in the order of the seeds.
        values: The settings that vary between rows.
        score: Summary of the metric that ranks the rows; None if a run was not validated.
        comparison: With the best row, its p-value corrected; None for the best row and for rows without a rank.
        verdict: The comparison in words.
    """

    results: Sequence[Result]
    values: Mapping[str, Any]
    score: Summary | None
    comparison: Comparison | None = None
    verdict: str = ""

    @property
    def seconds(self) -> float:
        """Mean duration of a run."""
        return fmean(result.seconds for result in self.results)


@dataclass(frozen=True)
class Ranking:
    """All content of a leaderboard.

    Attributes:
        metric, mode: The metric that ranks the rows, such as `val/acc`, and whether its "max" or "min" is best.
        names: Short name of each setting that varies.
        ranked: Best first.
        unranked: Finished, but not validated.
        repeated: Finished runs that a newer one with the same settings and seed replaces.
        unfinished: Runs that did not finish.
        importance: Each parameter's fraction of the importance; empty if it is not a search.
    """

    metric: str
    mode: str
    names: Mapping[str, str]
    ranked: Sequence[Row]
    unranked: Sequence[Row]
    repeated: Sequence[Result]
    unfinished: Sequence[Result]
    importance: Mapping[str, float] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        return [*self.ranked, *self.unranked]


def rank(results: Sequence[Result], importance: Mapping[str, float] | None = None) -> Ranking:
    """Group, rank and compare runs."""
    finished = [result for result in results if result.finished]
    metric, mode = _common_metric(finished)
    groups: dict[str, dict[int, Result]] = {}
    repeated = []
    for result in sorted(finished, key=lambda r: str(r.manifest.get("started"))):
        group = groups.setdefault(experiment_of(result), {})
        if result.seed in group:
            repeated.append(group[result.seed])
        group[result.seed] = result
    kept = [result for group in groups.values() for result in group.values()]
    keys = varied_settings(kept)
    grouped = [[group[seed] for seed in sorted(group)] for group in groups.values()]
    rows = [Row(g, {key: value_of(g[0], key) for key in keys}, summarise_metric(g, metric)) for g in grouped]
    sign = -1 if mode == "max" else 1
    ranked = sorted((row for row in rows if row.score), key=lambda row: sign * row.score.mean if row.score else 0)
    return Ranking(
        metric=metric,
        mode=mode,
        names=short_names(keys),
        ranked=_compare_with_best(ranked, metric),
        unranked=[row for row in rows if not row.score],
        repeated=repeated,
        unfinished=[result for result in results if not result.finished],
        importance=importance or {},
    )


def summarise_metric(results: Sequence[Result], metric: str) -> Summary | None:
    """Summarise a metric over runs; None if a run does not have it, or not a finite value."""
    values = [result.metrics.get(metric, nan) for result in results]
    return summarise(values) if all(map(isfinite, values)) else None


def test_metric(metric: str) -> str:
    """Return the test accuracy of the same weights as a validation metric: EMA weights or the trained ones."""
    return "test/acc_ema" if metric.endswith("_ema") else "test/acc"


def experiment_of(result: Result) -> str:
    """Return a text that is equal for runs that differ only in their seed, name and directory."""
    return "\n".join(sorted(f"{k}={_canonical(v)}" for k, v in result.settings.items() if k not in RUN_KEYS))


def varied_settings(results: Sequence[Result]) -> list[str]:
    """Return the settings and config groups in which runs differ, those given on the command line first.

    Settings that follow from another setting or from the chosen file of a group are left out, unless they were given.
    """
    given = [override.lstrip("+").partition("=")[0] for result in results for override in result.overrides]
    groups = [
        group
        for group in _all_keys(r.choices for r in results)
        if all(group in r.choices for r in results) and _varies([r.choices[group] for r in results])
    ]

    def follows(key: str) -> bool:
        return all(key in r.derived for r in results) or any(_follows_from(group, key, results) for group in groups)

    keys = [
        key
        for key in _all_keys(r.settings for r in results)
        if key not in {*RUN_KEYS, *groups}
        and _varies([r.settings.get(key, UNSET) for r in results])
        and (key in given or not follows(key))
    ]
    return sorted([*groups, *keys], key=lambda key: given.index(key) if key in given else len(given))


def value_of(result: Result, key: str) -> Any:
    """Return a setting or a group's choice: "-" if the run has no such setting, "null" if it is null."""
    value = result.choices[key] if key in result.choices else result.settings.get(key, UNSET)
    return "null" if value is None else value


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the shortest unambiguous end of each dotted key: `lr` for `optimizer.lr` if no other key ends so."""
    parts = {key: key.removesuffix("._target_").split(".") for key in keys}
    names = {}
    for key, mine in parts.items():
        others = [other for name, other in parts.items() if name != key]
        length = next((n for n in range(1, len(mine)) if all(o[-n:] != mine[-n:] for o in others)), len(mine))
        name = ".".join(mine[-length:])
        names[key] = key if any(name == ".".join(other) for other in others) else name
    return names


def format_value(value: Any) -> str:
    """Format the value of a setting."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value) if isinstance(value, bool | list) else str(value)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _common_metric(results: Sequence[Result]) -> tuple[str, str]:
    """Return the validation metric that selected the checkpoints of all runs, or else the accuracy."""
    chosen = {str(result.settings.get("checkpoint.monitor")) for result in results}
    metric = chosen.pop() if len(chosen) == 1 else ""
    given = [result.settings.get("checkpoint.mode") for result in results]
    return (metric, mode_of(metric, given[0])) if metric.startswith("val/") else DEFAULT


def _compare_with_best(ranked: Sequence[Row], metric: str) -> list[Row]:
    if not ranked:
        return []
    best, *others = [{result.seed: result.metrics[metric] for result in row.results} for row in ranked]
    found = [compare(best, other) for other in others]
    corrected = [Comparison(c.test, p) for c, p in zip(found, holm([c.p for c in found]), strict=True)]
    rows = [replace(ranked[0], verdict="best")]
    for row, comparison in zip(ranked[1:], corrected, strict=True):
        one_seed = not comparison.test and 1 in (len(row.results), len(best))
        verdict = "one seed: cannot be compared" if one_seed else describe_comparison(comparison)
        rows.append(replace(row, comparison=comparison, verdict=verdict))
    return rows


def _follows_from(group: str, key: str, results: Sequence[Result]) -> bool:
    """Whether the chosen file of a group determines a setting."""
    if group not in FILLING and not key.startswith(f"{group}."):
        return False
    choices = {r.choices[group] for r in results}
    return not any(_varies([r.settings.get(key, UNSET) for r in results if r.choices[group] == c]) for c in choices)


def _varies(values: Sequence[Any]) -> bool:
    return len(set(map(_canonical, values))) > 1


def _canonical(value: Any) -> str:
    """Return the same text for 1 and 1.0, but different ones for 1, true and "1"."""
    return json.dumps(float(value) if is_number(value) else value, default=str)


def _all_keys(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    return list({key: None for mapping in mappings for key in mapping})
