"""How sure a mean over seeds is, and which differences are larger than the noise between seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan, sqrt

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
ALPHA = 0.05  # below it a corrected p-value says that rows differ


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (n - 1) and 95 % interval of the mean (Student's t); one value has but a mean, the rest
    is NaN."""

    n: int
    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Whether two rows differ by more than their seeds do.

    Attributes:
        test: "paired" (t-test over the seeds that both have), "Welch" (t-test of unequal variances), or "" for none.
        p: Two-sided; NaN where there is no test.
    """

    test: str
    p: float


def summarise(values: Sequence[float]) -> Summary:
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Summary(n, mean, nan, nan, nan)
    std = float(np.std(values, ddof=1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * std / sqrt(n)
    return Summary(n, mean, std, mean - half, mean + half)


def compare(best: Mapping[int, float], other: Mapping[int, float]) -> Comparison:
    """Compares two rows by their values, each under its seed."""
    seeds = sorted(set(best) & set(other))
    if len(seeds) >= 2:
        first, second = np.array([best[s] for s in seeds]), np.array([other[s] for s in seeds])
        if np.array_equal(first, second):
            return Comparison("paired", 1.0)
        # Seeds that only one row has can have made it the better one.
        agree = (first.mean() - second.mean()) * (np.mean(list(best.values())) - np.mean(list(other.values()))) > 0
        # Differences that are all alike would be told apart with certainty, at two seeds already.
        if agree and np.ptp(first - second) > 1e-9:
            return Comparison("paired", float(stats.ttest_rel(first, second).pvalue))
    first, second = np.array(list(best.values())), np.array(list(other.values()))
    if min(len(first), len(second)) >= 2 and max(np.ptp(first), np.ptp(second)) > 1e-9:
        return Comparison("Welch", float(stats.ttest_ind(first, second, equal_var=False).pvalue))
    return Comparison("", nan)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979, A simple sequentially rejective multiple test procedure); NaN is
    no test and stays NaN."""
    corrected = [nan] * len(p_values)
    order = sorted((p, place) for place, p in enumerate(p_values) if p == p)
    largest = 0.0
    for step, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - step)))
        corrected[place] = largest
    return corrected


def in_words(comparison: Comparison) -> str:
    """The verdict on a row that lies behind the best."""
    if not comparison.test:
        return "can't be told"
    p = p_value(comparison.p)
    return f"worse ({p})" if comparison.p < ALPHA else f"not told apart from the best ({p})"


def p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
