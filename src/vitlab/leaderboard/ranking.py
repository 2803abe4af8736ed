"""Runs grouped over their seeds, best first by validation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from statistics import fmean
from typing import Any

from vitlab.config.ranges import mode_of
from vitlab.leaderboard.results import Result
from vitlab.leaderboard.statistics import Comparison, Summary, compare, holm, in_words, summarise
from vitlab.leaderboard.varied_settings import experiment_of, short_names, value_of, varied_settings

DEFAULT = ("val/acc", "max")


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed alone.

    Attributes:
        results: One a seed, in the order of the seeds.
        values: Of the settings that vary between rows.
        score: Of what rows are ordered by; None where the runs were not validated.
        accuracy: Of the validation accuracy; None as above.
        test: Of the test accuracy; None where one of them has not been tested.
        seconds: A run's, on average.
        comparison: With the best row, p corrected for the number of comparisons; None for the best row itself, and for
            rows that are not ranked.
        verdict: The comparison in words.
    """

    results: Sequence[Result]
    values: Mapping[str, Any]
    score: Summary | None
    accuracy: Summary | None
    test: Summary | None
    seconds: float
    comparison: Comparison | None = None
    verdict: str = ""

    @property
    def seeds(self) -> list[int]:
        return [result.seed for result in self.results]


@dataclass(frozen=True)
class Ranking:
    """All that a leaderboard shows.

    Attributes:
        metric, mode: What rows are ordered by, as `val/acc`, and whether its "max" or "min" is best.
        names: Settings that vary, each with its short name.
        ranked: Best first.
        unranked: Finished, but not validated.
        repeated: Finished runs with the settings and the seed of a newer one, which stands for them.
        unfinished: Runs that did not get to their end.
        importance: The share that each parameter has in the score's variation, where a search knows it.
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


def stand(results: Sequence[Result], importance: Mapping[str, float] | None = None) -> Ranking:
    """Groups, orders and compares runs."""
    finished = [result for result in results if result.finished]
    metric, mode = _metric(finished)
    groups: dict[str, dict[int, Result]] = {}
    repeated = []
    for result in sorted(finished, key=lambda r: str(r.manifest.get("started"))):
        older = groups.setdefault(experiment_of(result), {}).pop(result.seed, None)
        repeated += [older] if older else []
        groups[experiment_of(result)][result.seed] = result
    kept = [result for group in groups.values() for result in group.values()]
    keys = varied_settings(kept)
    rows = [_row([group[seed] for seed in sorted(group)], keys, metric) for group in groups.values()]
    sign = -1 if mode == "max" else 1
    ranked = sorted((row for row in rows if row.score), key=lambda row: sign * row.score.mean if row.score else 0)
    return Ranking(
        metric=metric,
        mode=mode,
        names=short_names(keys),
        ranked=_compared(ranked, metric),
        unranked=[row for row in rows if not row.score],
        repeated=repeated,
        unfinished=[result for result in results if not result.finished],
        importance=importance or {},
    )


def _metric(results: Sequence[Result]) -> tuple[str, str]:
    """What the runs chose their checkpoints by, where that is one validation metric for all."""
    chosen = {str(result.settings.get("checkpoint.monitor")) for result in results}
    metric = chosen.pop() if len(chosen) == 1 else ""
    modes = [result.settings.get("checkpoint.mode") for result in results]
    return (metric, mode_of(metric, modes[0])) if metric.startswith("val/") else DEFAULT


def test_metric(metric: str) -> str:
    """The test accuracy of the weights that a metric is of."""
    return "test/acc_ema" if metric.endswith("_ema") else "test/acc"


def _row(results: Sequence[Result], keys: Sequence[str], metric: str) -> Row:
    return Row(
        results=results,
        values={key: value_of(results[0], key) for key in keys},
        score=_summary(results, metric),
        accuracy=_summary(results, "val/acc"),
        test=_summary(results, test_metric(metric)),
        seconds=fmean(result.seconds for result in results),
    )


def _summary(results: Sequence[Result], metric: str) -> Summary | None:
    values = [result.metrics.get(metric, float("nan")) for result in results]
    return summarise(values) if all(map(isfinite, values)) else None


def _compared(ranked: Sequence[Row], metric: str) -> list[Row]:
    scores = [{result.seed: result.metrics[metric] for result in row.results} for row in ranked]
    found = [compare(scores[0], other) for other in scores[1:]]
    corrected = [Comparison(c.test, p) for c, p in zip(found, holm([c.p for c in found]), strict=True)]
    rows = []
    for place, row in enumerate(ranked):
        comparison = corrected[place - 1] if place else None
        verdict = in_words(comparison) if comparison else "best"
        if comparison and not comparison.test and 1 in (len(row.results), len(ranked[0].results)):
            verdict = "one seed: can't be told"
        rows.append(replace(row, comparison=comparison, verdict=verdict))
    return rows
