"""Group runs over seeds and folds, rank the groups, and test the differences."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, nan, sqrt
from statistics import fmean
from typing import Any

import numpy as np
from scipy import stats

from vitlab.config.check import FILLING
from vitlab.errors import UserError, nearest
from vitlab.leaderboard.results import Result
from vitlab.metrics import metric_kind, metric_name
from vitlab.runs.directory import moment

DEFAULT = "val/acc"
UNSET = "-"
RUN_KEYS = {"seed", "data.fold", "name", "run_dir", "tags", "notes"}  # differ between runs of the same experiment
BOUNDS = {"acc": (0.0, 1.0), "loss": (0.0, inf)}  # name of a metric -> its least and largest value
CONFIDENCE = 0.95
ALPHA = 0.05  # significance level of the corrected p-values


@dataclass(frozen=True)
class Summary:
    """Mean over seeds or folds, standard deviation (n - 1), and 95 % interval of the mean; NaN if undefined."""

    n: int
    mean: float = nan
    std: float = nan
    low: float = nan
    high: float = nan


@dataclass(frozen=True)
class Comparison:
    """A test whether two rows differ by more than the noise between seeds."""

    test: str  # "paired" (t-test over common seeds), "Welch" (t-test of unequal variances), "" if none is possible
    p: float  # two-sided; NaN without a test


@dataclass(frozen=True)
class Row:
    """Runs that differ only in their seed and fold."""

    results: Sequence[Result]  # one per seed and fold, in their order
    values: Mapping[str, Any]  # the settings that vary between rows
    score: Summary  # of the metric that ranks the rows; n is 0 if a run was not validated
    comparison: Comparison = Comparison("", nan)  # with the best row, p corrected
    verdict: str = ""  # the comparison in words

    @property
    def seconds(self) -> float:
        """Mean duration of a run."""
        return fmean(result.seconds for result in self.results)


@dataclass(frozen=True)
class Ranking:
    """All content of a leaderboard."""

    metric: str  # ranks the rows, such as `val/acc`
    mode: str  # "max" or "min": which value of the metric is best
    names: Mapping[str, str]  # setting that varies -> short name
    ranked: Sequence[Row]  # best first
    unranked: Sequence[Row]  # finished, but not validated
    repeated: Sequence[Result]  # finished runs that a newer one with the same settings and seed replaces
    unfinished: Sequence[Result]
    importance: Mapping[str, float]  # parameter -> its fraction of the importance; empty if it is not a search

    @property
    def unit(self) -> str:
        """What the runs of one row differ in, in words."""
        return "fold" if any(run.fold is not None for row in self.rows for run in row.results) else "seed"

    @property
    def rows(self) -> list[Row]:
        return [*self.ranked, *self.unranked]


def rank(
    results: Sequence[Result], importance: Mapping[str, float] | None = None, metric: str | None = None
) -> Ranking:
    """Group, rank and compare runs, by `metric` or the one that selected their checkpoints.

    Raises:
        UserError: no run has the metric, it is one of the test images, or its better direction is not known.
    """
    finished = [result for result in results if result.status == "finished"]
    known = {key for result in finished for key in result.metrics if not key.startswith("test/")}
    if metric is None:
        metric = _common_metric(finished)
    elif metric.startswith("test/"):
        of_validation = metric.replace("test/", "val/", 1)
        instead = of_validation if of_validation in known else DEFAULT
        raise UserError(f"metric={metric}: test images are not used to rank runs: take metric={instead}")
    elif finished and metric not in known:
        raise UserError(f"metric={metric} was measured in none of the runs{nearest(metric, known)}")
    mode = _better_direction(metric, finished) if finished else "max"
    groups: dict[str, dict[tuple[int, int], Result]] = {}
    repeated = []
    for result in sorted(finished, key=lambda r: moment(r.manifest.get("started"))):
        group = groups.setdefault(experiment_of(result), {})
        if result.repetition in group:
            repeated.append(group[result.repetition])
        group[result.repetition] = result
    grouped = [[group[repetition] for repetition in sorted(group)] for group in groups.values()]
    keys = varied_settings([result for group in groups.values() for result in group.values()])
    rows = [Row(g, {key: value_of(g[0], key) for key in keys}, summarise_metric(g, metric)) for g in grouped]
    sign = -1 if mode == "max" else 1
    ranked = sorted((row for row in rows if row.score.n), key=lambda row: sign * row.score.mean)
    return Ranking(
        metric=metric,
        mode=mode,
        names=short_names(keys),
        ranked=_compare_with_best(ranked, metric),
        unranked=[row for row in rows if not row.score.n],
        repeated=repeated,
        unfinished=[result for result in results if result.status != "finished"],
        importance=importance or {},
    )


def summarise_metric(results: Sequence[Result], metric: str) -> Summary:
    """Summarise a metric over runs; n is 0 if a run does not have it, or not a finite value."""
    values = [result.metrics.get(metric, nan) for result in results]
    bounds = BOUNDS.get(metric_name(metric), (-inf, inf))
    return summarise(values if all(map(isfinite, values)) else [], bounds)


def summarise(values: Sequence[float], bounds: tuple[float, float] = (-inf, inf)) -> Summary:
    """Summarise values whose mean lies in `bounds`: Student's t interval is cut off there, which keeps its coverage
    (Mandelkern 2002, "Setting confidence intervals for bounded parameters")."""
    n = len(values)
    if n < 2:
        return Summary(n, *values)
    mean, std = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * std / sqrt(n)
    return Summary(n, mean, std, max(mean - half, bounds[0]), min(mean + half, bounds[1]))


def _common_metric(results: Sequence[Result]) -> str:
    """Return the validation metric that selected the checkpoints of all runs, or else the accuracy."""
    chosen = {str(result.settings.get("checkpoint.monitor")) for result in results}
    metric = chosen.pop() if len(chosen) == 1 else ""
    return metric if metric.startswith("val/") else DEFAULT


def _better_direction(metric: str, results: Sequence[Result]) -> str:
    """Return "max" or "min"; of a metric that vitlab does not know, as the runs say whose checkpoints it selected."""
    if kind := metric_kind(metric):
        return kind.mode
    chosen = [(r.settings.get("checkpoint.monitor"), r.settings.get("checkpoint.mode")) for r in results]
    modes = {str(mode) for monitor, mode in chosen if mode and metric_name(str(monitor)) == metric_name(metric)}
    if len(modes) != 1:
        known = dict.fromkeys(key for result in results for key in result.metrics if metric_kind(key))
        fitting = [key for key in known if key.startswith("val/")]
        raise UserError(
            f"metric={metric}: no run says whether a larger or a smaller value is better, as its checkpoint.mode would "
            f"with checkpoint.monitor={metric}: take {' or '.join(f'metric={key}' for key in fitting or [DEFAULT])}"
        )
    return modes.pop()


def _compare_with_best(ranked: Sequence[Row], metric: str) -> list[Row]:
    if not ranked:
        return []
    best, *others = [{run.pairing: run.metrics[metric] for run in row.results} for row in ranked]
    found = [compare(best, other) for other in others]
    rows = [replace(ranked[0], verdict="best")]
    for row, test, p in zip(ranked[1:], (c.test for c in found), holm([c.p for c in found]), strict=True):
        one_run = not test and 1 in (len(row.results), len(best))
        verdict = "one run: cannot be compared" if one_run else describe_comparison(Comparison(test, p))
        rows.append(replace(row, comparison=Comparison(test, p), verdict=verdict))
    return rows


def compare(best: Mapping[Any, float], other: Mapping[Any, float]) -> Comparison:
    """Compare two rows by their values, each given under its seed and split (`Result.pairing`)."""
    all_best, all_other = np.array(list(best.values())), np.array(list(other.values()))
    seeds = sorted(set(best) & set(other))
    if len(seeds) >= 2:
        first, second = np.array([best[s] for s in seeds]), np.array([other[s] for s in seeds])
        if np.array_equal(first, second):
            return Comparison("paired", 1.0)
        # The row may be best only because of seeds that the other one does not have.
        agree = (first.mean() - second.mean()) * (all_best.mean() - all_other.mean()) > 0
        # If all differences happen to be equal, a paired test would give p = 0, even with two seeds.
        if agree and np.ptp(first - second) > 1e-9:
            return Comparison("paired", float(stats.ttest_rel(first, second).pvalue))
    if min(len(best), len(other)) >= 2 and max(np.ptp(all_best), np.ptp(all_other)) > 1e-9:
        return Comparison("Welch", float(stats.ttest_ind(all_best, all_other, equal_var=False).pvalue))
    return Comparison("", nan)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm 1979, A simple sequentially rejective multiple test procedure).

    NaN stands for no test and stays NaN.
    """
    p = np.array(p_values, dtype=float)
    order = np.argsort(p)  # NaN last
    factors = np.isfinite(p).sum() - np.arange(len(p))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors))
    return corrected.tolist()


def describe_comparison(comparison: Comparison) -> str:
    """Return the verdict on a row that ranks below the best."""
    p = comparison.p
    if not comparison.test:
        return "cannot be compared"
    p_value = "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
    return f"worse ({p_value})" if p < ALPHA else f"no significant difference ({p_value})"


def experiment_of(result: Result) -> str:
    """Return a text that is equal for runs that differ only in their seed, fold, name and directory."""
    # Of a fold, what is measured on its images, such as their mean, follows from it.
    left_out = set() if result.fold is None else result.derived
    settings = {k: v for k, v in result.settings.items() if k not in left_out and not _is_of_the_run(k)}
    return "\n".join(sorted(f"{k}={_canonical(v)}" for k, v in settings.items()))


def _is_of_the_run(key: str) -> bool:
    """Whether a setting may differ between runs of the same experiment; loggers hold the run's name and number."""
    return key in RUN_KEYS or key.startswith("logger.")


def varied_settings(results: Sequence[Result]) -> list[str]:
    """Return the settings and config groups in which runs differ, those given on the command line first.

    Settings that follow from another setting or from the chosen file of a group are left out, unless they were given.
    """
    given = [override.lstrip("+").partition("=")[0] for result in results for override in result.overrides]
    groups = [
        group
        for group in dict.fromkeys(group for r in results for group in r.choices if group != "logger")
        if all(group in r.choices for r in results) and _varies([r.choices[group] for r in results])
    ]

    def follows(key: str) -> bool:
        return all(key in r.derived for r in results) or any(_follows_from(group, key, results) for group in groups)

    keys = [
        key
        for key in dict.fromkeys(key for r in results for key in r.settings)
        if key not in groups
        and not _is_of_the_run(key)
        and _varies([r.settings.get(key, UNSET) for r in results])
        and (key in given or not follows(key))
    ]
    return sorted([*groups, *keys], key=lambda key: given.index(key) if key in given else len(given))


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
