"""The results table: the project's recipes beside published figures, best first."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from vitlab.claims.record import Run
from vitlab.leaderboard.statistics import summarise
from vitlab.leaderboard.table import as_markdown
from vitlab.leaderboard.table import format_duration as duration
from vitlab.leaderboard.table import format_spread as spread

HEADS = ("what", "test accuracy, %", "epochs", "time", "how to check it")


def table(claims: Sequence[Sequence[Run]], published: Path, place: str) -> str:
    """Markdown; recipes in bold letters.

    Args:
        claims: Runs of a recipe that differ in their seeds alone.
        published: CSV of others' figures: `what,accuracy,epochs,source`.
        place: The folder of the experiments as the table links to it.
    """
    with published.open(newline="", encoding="utf-8") as lines:
        rows = [(float(line["accuracy"]), _published(line)) for line in csv.DictReader(lines)]
    rows += [(100 * fmean(run.accuracy for run in runs), _own(runs, place)) for runs in claims]
    return as_markdown(HEADS, [row for _, row in sorted(rows, reverse=True)])


def accuracy(runs: Sequence[Run]) -> str:
    """Mean and standard deviation, in percent."""
    return f"{spread('test/acc', summarise([run.accuracy for run in runs]))}"


def measured(runs: Sequence[Run]) -> str:
    """A claim's figures in one sentence."""
    first = runs[0]
    return (
        f"{accuracy(runs)} % of the test images of {first.data} ({seeds(runs)}), "
        f"{fmean(run.epochs for run in runs):.1f} epochs, {duration(fmean(run.seconds for run in runs))} in all, "
        f"{first.machine}, commit {first.commit}: {typed(runs)}"
    )


def seeds(runs: Sequence[Run]) -> str:
    return "one seed" if len(runs) == 1 else f"{len(runs)} seeds"


def typed(runs: Sequence[Run]) -> str:
    """The command with the seeds that it was run with."""
    return f"{runs[0].command} seed={','.join(str(run.seed) for run in runs)}{' -m' if len(runs) > 1 else ''}"


def _own(runs: Sequence[Run], place: str) -> list[str]:
    first = runs[0]
    links = (
        f"[**{first.experiment}**]({place}/{first.experiment}.yaml) ([curve]({place}/curves/{first.experiment}.svg))"
    )
    what = f"{links}, {first.parameters / 1e6:.1f} M parameters, {first.data}"
    epochs = f"{fmean(run.epochs for run in runs):.1f}"
    time = f"{duration(fmean(run.seconds for run in runs))}, {first.machine}"
    return [what, f"**{accuracy(runs)}** ({seeds(runs)})", epochs, time, f"`{typed(runs)}` at {first.commit}"]


def _published(line: Mapping[str, str]) -> list[str]:
    return [line["what"], line["accuracy"], line["epochs"], "", line["source"]]
