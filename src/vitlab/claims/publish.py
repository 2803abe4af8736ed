"""From run directories to the record, the curves, the recipes' headers and the README's table."""

import re
import textwrap
from collections.abc import Sequence
from os.path import relpath
from pathlib import Path

from matplotlib.figure import Figure

from vitlab.claims.curve import draw
from vitlab.claims.record import Run, claims, merged, read_record, recorded, write_record
from vitlab.claims.table import measured, table
from vitlab.errors import UserError
from vitlab.files import replacing, shorten, write_text
from vitlab.leaderboard.results import read_results

BLOCK = re.compile(r"(<!-- results -->\n).*?(<!-- end of results -->)", re.DOTALL)
MEASURED = re.compile(r"^# Measured: .*\n(?:#  .*\n)*", re.MULTILINE)
WIDTH = 120


def publish(folders: Sequence[Path], data: str | None, conf: Path, readme: Path) -> list[Path]:
    """Puts finished runs of experiments on record, and writes anew what is made of the record.

    Args:
        folders: Of runs, or with runs below them; none: the record as it is. A curve is drawn where they hold all
            runs of a claim.
        data: What their images are called; None: by their source.
        conf: The folder of YAML files; the record, the published figures and the curves are in its `experiment`.
        readme: Has a line `<!-- results -->` and a line `<!-- end of results -->`, between which the table goes.

    Returns:
        The files that were written.

    Raises:
        UserError: a run can't go on record, or a file has no place for what belongs there.
    """
    home = conf / "experiment"
    record = home / "results.csv"
    results = read_results(folders) if folders else []
    runs = [recorded(result, data) for result in results]
    everything = merged(read_record(record), runs)
    found = claims(everything)
    texts = {readme: _with_table(readme, table(found, home / "published.csv", relpath(home, readme.parent)))}
    curves: dict[Path, Figure] = {}
    for experiment in sorted({claim[0].experiment for claim in found}):
        file = home / f"{experiment}.yaml"
        texts[file] = _with_figures(file, [claim for claim in found if claim[0].experiment == experiment])
    for claim in found:
        own = [result for result, run in zip(results, runs, strict=True) if run in claim]
        if len(own) == len(claim):
            curves[home / "curves" / f"{claim[0].experiment}.svg"] = draw(own)
    # Nothing is written before all is known to have its place.
    write_record(record, everything)
    for file, text in texts.items():
        write_text(file, text)
    for file, curve in curves.items():
        file.parent.mkdir(exist_ok=True)
        with replacing(file) as temporary:
            curve.savefig(temporary, format="svg", metadata={"Date": None})
    return [record, *texts, *curves]


def _with_table(readme: Path, content: str) -> str:
    text = readme.read_text(encoding="utf-8")
    if not BLOCK.search(text):
        raise UserError(f"{readme} has no <!-- results --> and <!-- end of results --> for the table to stand between")
    return BLOCK.sub(lambda block: f"{block[1]}{content}\n{block[2]}", text)


def _with_figures(file: Path, found: Sequence[Sequence[Run]]) -> str:
    """An experiment's file with what was measured, on each machine, in its head."""
    text = file.read_text(encoding="utf-8")
    if not MEASURED.search(text):
        raise UserError(f"{shorten(file)} has no line '# Measured: ...' to put its figures in")
    lines: list[str] = []
    for claim in found:
        first = "#   " if lines else "# Measured: "
        lines += textwrap.wrap(
            measured(claim), WIDTH, initial_indent=first, subsequent_indent="#   ", break_on_hyphens=False
        )
    return MEASURED.sub(lambda _: "\n".join(lines) + "\n", text, count=1)
