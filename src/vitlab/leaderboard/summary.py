"""What can be said from a leaderboard, in sentences."""

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from vitlab.files import shorten
from vitlab.leaderboard.format import amount, interval, label, name_of
from vitlab.leaderboard.ranking import Ranking, Row, test_metric
from vitlab.leaderboard.results import Result
from vitlab.leaderboard.statistics import ALPHA

NAMED = 20  # rows that a sentence names
CIRCUMSTANCES = {  # places in the manifest
    ("data", "val", "sha256"): "Careful: not all runs were validated on the same images, so their places mean little.",
    ("data", "test", "sha256"): "Careful: not all runs were tested on the same images.",
    ("git", "revision"): "The runs are of different revisions of the code.",
    ("versions", "torch"): "The runs are of different versions of torch.",
    ("hardware",): "The runs were made on different machines or numbers of threads, so their times don't compare.",
}


def findings(standings: Ranking) -> list[str]:
    """The best row, what is worse than it by more than noise, and what stands in the way of saying more."""
    return [
        *_of_the_best(standings),
        *_of_circumstances(standings),
        *_of_differences(standings),
        *_of_rows_left_out(standings),
    ]


def commands(standings: Ranking) -> list[str]:
    """What does the best row's runs again, each in a directory of its own."""
    best = standings.ranked[0].results if standings.ranked else []
    return [f"python train.py reproduce={shlex.quote(shorten(result.path))}" for result in best]


def typed_for(result: Result, standings: Ranking) -> str:
    """What was typed for a run, but for what was typed for all."""
    everything = [*standings.unfinished, *(run for row in standings.rows for run in row.results)]
    return " ".join(o for o in result.overrides if not all(o in other.overrides for other in everything))


def _of_the_best(standings: Ranking) -> Iterator[str]:
    if not standings.ranked:
        yield (
            "No run was validated, so none is best: the test images choose nothing."
            if standings.rows
            else "No run is finished."
        )
        return
    best, metric = standings.ranked[0], standings.metric
    assert best.score
    if best.score.n > 1:
        how = (
            f"mean of {best.score.n} seeds, standard deviation {amount(metric, best.score.std)}, "
            f"95 % interval {interval(metric, best.score)}"
        )
    else:
        how = "one seed, so no interval"
    test = f"; on the test images {amount(test_metric(metric), best.test.mean)}" if best.test else ""
    what = label(best, standings)
    yield f"Best by {name_of(metric)}: {what}, with {amount(metric, best.score.mean)} ({how}){test}."


def _of_differences(standings: Ranking) -> Iterator[str]:
    others = standings.ranked[1:]
    if not others:
        return
    told = [row for row in others if row.comparison and row.comparison.test]
    worse = [row for row in told if row.comparison and row.comparison.p < ALPHA]
    level = [row for row in told if row not in worse]
    untold = [row for row in others if row not in told]
    if told:
        kinds = {"paired": "paired over common seeds", "Welch": "Welch's where that can't be"}
        used = [words for test, words in kinds.items() if any(r.comparison and r.comparison.test == test for r in told)]
        how = f"t-tests, {' or '.join(used)}"
        if len(told) > 1:
            how += f"; p-values are corrected for {len(told)} comparisons (Holm)"
        if worse:
            yield f"Worse than the best by more than the noise between seeds: {_places(worse, standings)} ({how})."
        else:
            yield f"No row is worse than the best by more than the noise between seeds ({how})."
    if level:
        yield f"Not told apart from the best: {_places(level, standings)}. More seeds may tell."
    if all(len(row.results) == 1 for row in standings.ranked):
        again = _more_seeds(standings)
        yield "How much of the differences is the noise between seeds can't be told: rows have one seed." + again
    elif untold:
        yield f"It can't be told of {_places(untold, standings)}: too few seeds, or seeds that agree to the last digit."
    if len(others) > 1:
        yield "The best row was picked by these same numbers: of several that are equal the luckiest one stands first."


def _more_seeds(standings: Ranking) -> str:
    """The command that would tell, where the best run's own is known."""
    overrides = [o for o in standings.ranked[0].results[0].overrides if not o.startswith(("seed=", "hydra."))]
    if not overrides:
        return ""
    return f" To see: python train.py -m {shlex.join(overrides)} seed=0,1,2"


def _of_rows_left_out(standings: Ranking) -> Iterator[str]:
    if standings.unranked:
        yield (
            f"Last and without a place, for their runs have no {name_of(standings.metric)} (trained without validation "
            f"images, or it is no number): {'; '.join(label(row, standings) for row in standings.unranked)}."
        )
    if standings.repeated:
        runs = ", ".join(shorten(result.path) for result in standings.repeated)
        yield f"Left out, for a newer run has the same settings and seed: {runs}."
    if standings.unfinished:
        counts: dict[str, int] = {}
        for result in standings.unfinished:
            counts[result.status] = counts.get(result.status, 0) + 1
        kinds = ", ".join(f"{count} {status}" for status, count in counts.items())
        yield f"Not in the table, for they are not finished: {kinds}; they are listed below."


def _of_circumstances(standings: Ranking) -> Iterator[str]:
    manifests = [result.manifest for row in standings.rows for result in row.results]
    for path, sentence in CIRCUMSTANCES.items():
        values = {str(_at(path, manifest)) for manifest in manifests}
        if len(values) > 1:
            yield sentence
    if any(_at(("git", "dirty"), manifest) for manifest in manifests):
        yield "Some runs are of code with changes that git does not know."


def _at(path: Sequence[str], node: Any) -> Any:
    for key in path:
        node = (node or {}).get(key)
    return node


def _places(rows: Sequence[Row], standings: Ranking) -> str:
    places = [f"#{place}" for place, row in enumerate(standings.ranked, 1) if row in rows]
    return ", ".join(places[:NAMED]) + (f" and {len(places) - NAMED} more" if len(places) > NAMED else "")
