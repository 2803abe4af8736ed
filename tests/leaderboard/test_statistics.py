"""Test means, intervals and p-values against scipy and hand calculations."""

from math import isnan, nan, sqrt
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from vitlab.leaderboard.ranking import (
    ALPHA,
    Comparison,
    compare,
    describe_comparison,
    holm,
    summarise,
    summarise_metric,
)
from vitlab.leaderboard.results import Result


def test_interval_by_hand() -> None:
    summary = summarise([0.1, 0.2, 0.3])
    # t of 2 degrees of freedom at 97.5 % is 4.30265; the standard error is 0.1 / sqrt(3).
    assert (summary.n, summary.mean, summary.std) == (3, pytest.approx(0.2), pytest.approx(0.1))
    assert summary.high - 0.2 == pytest.approx(4.30265 * 0.1 / sqrt(3), rel=1e-5)
    assert 0.2 - summary.low == pytest.approx(summary.high - 0.2)


def test_interval_agrees_with_scipy() -> None:
    draw = np.random.default_rng(0)
    for n in (2, 3, 5, 20):
        values = draw.normal(0.7, 0.02, n)
        summary = summarise(list(values))
        expected = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
        assert (summary.low, summary.high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("metric", "low", "high"),
    [
        ("val/acc", 0, 1),
        ("test/acc_ema", 0, 1),
        ("val/loss", 0, None),
        ("val/loss_ema", 0, None),
        ("val/f1", None, None),
        ("val/accent", None, None),
        ("val/loss_ratio", None, None),
    ],
)
@pytest.mark.parametrize("values", [(0.01, 0.14), (0.9, 0.99), (0.0, 1.0)])
def test_an_interval_ends_where_the_metric_does(
    metric: str, low: float | None, high: float | None, values: tuple[float, float]
) -> None:
    found = summarise_metric([Result(Path(), "finished", metrics={metric: value}) for value in values], metric)
    theirs = stats.t.interval(0.95, 1, loc=np.mean(values), scale=stats.sem(values))
    assert found.low == pytest.approx(theirs[0] if low is None else max(theirs[0], low))
    assert found.high == pytest.approx(theirs[1] if high is None else min(theirs[1], high))


def test_one_value_has_no_interval() -> None:
    summary = summarise([0.5])
    assert summary.mean == 0.5
    assert isnan(summary.std)
    assert isnan(summary.low)
    assert isnan(summary.high)


def test_paired_by_hand() -> None:
    # Differences 1, 2, 3: t = 2 / (1 / sqrt(3)) = 3.4641 with 2 degrees of freedom.
    found = compare({0: 11.0, 1: 22.0, 2: 33.0}, {0: 10.0, 1: 20.0, 2: 30.0})
    assert found.test == "paired"
    assert found.p == pytest.approx(0.07418, abs=1e-5)


def test_only_common_seeds_are_paired() -> None:
    best, other = {3: 0.7, 1: 0.6, 2: 0.65, 9: 0.9}, {1: 0.55, 2: 0.64, 3: 0.66, 8: 0.1}
    found = compare(best, other)
    expected = stats.ttest_rel([0.6, 0.65, 0.7], [0.55, 0.64, 0.66]).pvalue
    assert found == Comparison("paired", pytest.approx(expected))


def test_a_row_that_is_better_on_common_seeds_is_not_significantly_worse() -> None:
    best, other = {0: 0.80, 1: 0.8001, 2: 0.95, 3: 0.95}, {0: 0.82, 1: 0.8202}
    assert stats.ttest_rel([0.80, 0.8001], [0.82, 0.8202]).pvalue < 0.05
    found = compare(best, other)
    assert found.test == "Welch"
    assert found.p > 0.05


def test_rows_without_two_common_seeds_are_compared_by_welch() -> None:
    best, other = {0: 0.7, 1: 0.72, 2: 0.71}, {2: 0.6, 3: 0.66, 4: 0.61, 5: 0.58}
    expected = stats.ttest_ind(list(best.values()), list(other.values()), equal_var=False).pvalue
    assert compare(best, other) == Comparison("Welch", pytest.approx(expected))


@pytest.mark.parametrize("other", [{0: 0.5}, {1: 0.5}])
def test_one_seed_allows_no_comparison(other: dict[int, float]) -> None:
    found = compare({0: 0.7, 1: 0.71}, other)
    assert found.test == ""
    assert describe_comparison(found) == "cannot be compared"


def test_equal_runs_do_not_differ() -> None:
    assert compare({0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.6}) == Comparison("paired", 1.0)


def test_equal_differences_are_not_significant() -> None:
    """Of 5,000 images, two pairs of runs easily differ by the same number of them; a paired test would say p = 0."""
    best, other = {0: 0.7002, 1: 0.7102}, {0: 0.7000, 1: 0.7100}
    found = compare(best, other)
    assert found.test == "Welch"
    assert found.p > 0.9


def test_rows_without_variation_between_seeds_cannot_be_compared() -> None:
    assert compare({0: 0.7, 1: 0.7}, {0: 0.6, 1: 0.6}).test == ""


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.02, 0.5, 0.9]) == pytest.approx([0.06, 1.0, 1.0])
    assert holm([]) == []


def test_holm_counts_only_tests_that_were_made() -> None:
    corrected = holm([0.01, nan, 0.04])
    assert corrected[0] == pytest.approx(0.02)
    assert isnan(corrected[1])
    assert corrected[2] == pytest.approx(0.04)


def test_equal_rows_are_rarely_significantly_different() -> None:
    """Two settings that are the same: about one in twenty pairs of rows may be told apart, not more."""
    draw = np.random.default_rng(0)
    pairs = [sorted(draw.normal(0.7, 0.01, (2, 3)), key=lambda row: -row.mean()) for _ in range(400)]
    wrong = [compare(dict(enumerate(a)), dict(enumerate(b))).p < ALPHA for a, b in pairs]
    assert np.mean(wrong) < 0.08


@pytest.mark.parametrize(
    ("p", "words"),
    [
        (0.0004, "worse (p < 0.001)"),
        (0.003, "worse (p = 0.003)"),
        (0.0499, "worse (p = 0.050)"),
        (0.051, "no significant difference (p = 0.051)"),
        (0.21, "no significant difference (p = 0.21)"),
    ],
)
def test_words(p: float, words: str) -> None:
    assert describe_comparison(Comparison("paired", p)) == words
