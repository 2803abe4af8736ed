"""Confidence intervals of means over seeds, and significance tests between rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan, sqrt

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
ALPHA = 0.05  # significance level of the corrected p-values


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (n - 1) and 95 % interval of the mean (Student's t); NaN except the mean if n is 1."""

    n: int
    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A test whether two rows differ by more than the noise between seeds.

    Attributes:
        test: "paired" (t-test over common seeds), "Welch" (t-test of unequal variances), or "" if none is possible.
        p: Two-sided p-value; NaN without a test.
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
    """Compare two rows by their values, each given under its seed."""
    seeds = sorted(set(best) & set(other))
    if len(seeds) >= 2:
        first, second = np.array([best[s] for s in seeds]), np.array([other[s] for s in seeds])
        if np.array_equal(first, second):
            return Comparison("paired", 1.0)
        # The row may be best only because of seeds that the other one does not have.
        agree = (first.mean() - second.mean()) * (np.mean(list(best.values())) - np.mean(list(other.values()))) > 0
        # If all differences happen to be equal, a paired test would give p = 0, even with two seeds.
        if agree and np.ptp(first - second) > 1e-9:
            return Comparison("paired", float(stats.ttest_rel(first, second).pvalue))
    first, second = np.array(list(best.values())), np.array(list(other.values()))
    if min(len(first), len(second)) >= 2 and max(np.ptp(first), np.ptp(second)) > 1e-9:
        return Comparison("Welch", float(stats.ttest_ind(first, second, equal_var=False).pvalue))
    return Comparison("", nan)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm 1979, A simple sequentially rejective multiple test procedure).

    NaN stands for no test and stays NaN.
    """
    corrected = [nan] * len(p_values)
    order = sorted((p, index) for index, p in enumerate(p_values) if p == p)
    largest = 0.0
    for step, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - step)))
        corrected[index] = largest
    return corrected


def describe_comparison(comparison: Comparison) -> str:
    """Return the verdict on a row that ranks below the best."""
    p = comparison.p
    if not comparison.test:
        return "cannot be compared"
    p_value = "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
    return f"worse ({p_value})" if p < ALPHA else f"no significant difference ({p_value})"
