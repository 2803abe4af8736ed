"""Summarise a leaderboard in sentences, with commands for its best row."""

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from vitlab.files import shorten
from vitlab.leaderboard.ranking import ALPHA, Ranking, Row, summarise_metric
from vitlab.leaderboard.table import format_amount, format_interval, metric_name, row_label, test_metric

MAX_NAMED = 20  # rows in a sentence
DIFFERENCES = {  # path in the manifest -> sentence if the runs differ in it
    ("data", "val", "sha256"): "Warning: the runs were validated on different images, so the ranking means little.",
    ("data", "test", "sha256"): "Warning: the runs were tested on different images.",
    ("git", "revision"): "The runs used different revisions of the code.",
    ("versions", "torch"): "The runs used different versions of torch.",
    ("hardware",): "The runs used different machines or numbers of threads, so their times are not comparable.",
}


def headline(ranking: Ranking) -> str:
    """Say in one line how many runs there are and what ranks them."""
    runs, rows = sum(len(row.results) for row in ranking.rows), len(ranking.rows)
    counts = f"{runs} finished {'run' if runs == 1 else 'runs'} in {rows} {'row' if rows == 1 else 'rows'}"
    return f"{counts}, best first by {metric_name(ranking.metric)}; the test accuracy does not affect the order"


def summarise_ranking(ranking: Ranking) -> list[str]:
    """Return sentences: the best row, the rows that are significantly worse, and caveats."""
    return [*_best(ranking), *_caveats(ranking), *_comparisons(ranking), *_rows_left_out(ranking)]


def reproduce_commands(ranking: Ranking) -> list[str]:
    """Return the commands that repeat the best row's runs, each in a new directory."""
    best = ranking.ranked[0].results if ranking.ranked else []
    return [f"python train.py reproduce={shlex.quote(shorten(result.path))}" for result in best]


def _best(ranking: Ranking) -> Iterator[str]:
    if not ranking.rows:
        yield "No run is finished."
    elif not ranking.ranked:
        yield "No run was validated, so there is no best one: test images are not used to select a run."
    else:
        best, metric = ranking.ranked[0], ranking.metric
        how = "one seed, so no interval"
        if best.score.n > 1:
            std, interval = format_amount(metric, best.score.std), format_interval(metric, best.score)
            how = f"mean of {best.score.n} seeds, standard deviation {std}, 95 % interval {interval}"
        on_test = summarise_metric(best.results, test_metric(metric))
        test = f"; on the test images {format_amount(test_metric(metric), on_test.mean)}" if on_test.n else ""
        score = f"{format_amount(metric, best.score.mean)} ({how})"
        yield f"Best by {metric_name(metric)}: {row_label(best, ranking)}, with {score}{test}."


def _comparisons(ranking: Ranking) -> Iterator[str]:
    others = ranking.ranked[1:]
    tested = [row for row in others if row.comparison.test]
    worse = [row for row in tested if row.comparison.p < ALPHA]
    level = [row for row in tested if row.comparison.p >= ALPHA]
    untested = [row for row in others if not row.comparison.test]
    if tested:
        kinds = {"paired": "paired over common seeds", "Welch": "Welch's where seeds differ"}
        used = {row.comparison.test for row in tested}
        how = f"t-tests, {' or '.join(words for test, words in kinds.items() if test in used)}"
        if len(tested) > 1:
            how += f"; p-values corrected for {len(tested)} comparisons (Holm)"
        if worse:
            yield f"Significantly worse than the best: {_places(worse, ranking)} ({how})."
        else:
            yield f"No row is significantly worse than the best ({how})."
    if level:
        yield f"No significant difference from the best: {_places(level, ranking)}. More seeds may reveal one."
    if others and all(len(row.results) == 1 for row in ranking.ranked):
        yield f"One seed per row allows no comparison.{_more_seeds(ranking)}"
    elif untested:
        yield f"Cannot be compared with the best: {_places(untested, ranking)} (too few seeds, or equal scores)."
    if len(others) > 1:
        yield "The best row was selected by these same scores: among equally good rows, the luckiest ranks first."


def _more_seeds(ranking: Ranking) -> str:
    """Return the command that adds seeds to the best row, if its overrides are known."""
    overrides = [o for o in ranking.ranked[0].results[0].overrides if not o.startswith(("seed=", "hydra."))]
    return f" To add seeds: python train.py -m {shlex.join(overrides)} seed=0,1,2" if overrides else ""


def _rows_left_out(ranking: Ranking) -> Iterator[str]:
    if ranking.unranked:
        labels = "; ".join(row_label(row, ranking) for row in ranking.unranked)
        yield f"Last and without a rank, because {metric_name(ranking.metric)} is missing or not finite: {labels}."
    if ranking.repeated:
        runs = ", ".join(shorten(result.path) for result in ranking.repeated)
        yield f"Left out, because a newer run has the same settings and seed: {runs}."
    if ranking.unfinished:
        counts = Counter(result.status for result in ranking.unfinished)
        kinds = ", ".join(f"{count} {status}" for status, count in counts.items())
        yield f"Not in the table, because they did not finish: {kinds}; see the list below."


def _caveats(ranking: Ranking) -> Iterator[str]:
    manifests = [result.manifest for row in ranking.rows for result in row.results]
    for path, sentence in DIFFERENCES.items():
        if len({str(_select(path, manifest)) for manifest in manifests}) > 1:
            yield sentence
    if any(_select(("git", "dirty"), manifest) for manifest in manifests):
        yield "Some runs used code with uncommitted changes."


def _select(path: Sequence[str], node: Any) -> Any:
    for key in path:
        node = (node or {}).get(key)
    return node


def _places(rows: Sequence[Row], ranking: Ranking) -> str:
    places = [f"#{place}" for place, row in enumerate(ranking.ranked, 1) if row in rows]
    return ", ".join(places[:MAX_NAMED]) + (f" and {len(places) - MAX_NAMED} more" if len(places) > MAX_NAMED else "")
