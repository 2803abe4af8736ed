"""From run directories to the record, the curves, the recipes' headers and the README's table."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from vitlab.claims.curve import draw
from vitlab.claims.record import Run, claims, recorded, write_record
from vitlab.claims.table import measured, table
from vitlab.errors import UserError
from vitlab.files import replacing, shorten, write_text
from vitlab.sweeps.results import Result, read_results

BLOCK = re.compile(r"(<!-- results -->\n).*?(<!-- end of results -->)", re.DOTALL)
MEASURED = re.compile(r"^# Measured: .*\n(?:#  .*\n)*", re.MULTILINE)
WIDTH = 120


def publish(folders: Sequence[Path], data: str | None, conf: Path, readme: Path) -> list[Path]:
    """Puts finished runs of experiments on record, and writes anew what is made of the record.

    Args:
        folders: Of runs, or with runs below them; none: the record as it is.
        data: What their images are called; None: by their source.
        conf: The folder of YAML files; the record, the published figures and the curves are in its `experiment`.
        readme: Has a line `<!-- results -->` and a line `<!-- end of results -->`, between which the table goes.

    Returns:
        The files that were written.

    Raises:
        UserError: a run can't go on record, or a file has no place for what belongs there.
    """
    home = conf / "experiment"
    text = readme.read_text(encoding="utf-8")
    if not BLOCK.search(text):
        raise UserError(f"{readme} has no <!-- results --> and <!-- end of results --> for the table to stand between")
    results = read_results(folders) if folders else []
    runs = [recorded(result, data) for result in results]
    found = claims(write_record(home / "results.csv", runs))
    written = [home / "results.csv"]
    for claim in found:
        own = [result for result, run in zip(results, runs, strict=True) if run in claim]
        if own:
            written += [_curve(home / "curves" / f"{claim[0].experiment}.svg", own), _header(home, claim)]
    write_text(readme, BLOCK.sub(lambda block: f"{block[1]}{table(found, home / 'published.csv')}\n{block[2]}", text))
    return [*written, readme]


def _curve(file: Path, results: Sequence[Result]) -> Path:
    file.parent.mkdir(exist_ok=True)
    with replacing(file) as temporary:
        draw(results).savefig(temporary, format="svg", metadata={"Date": None})
    return file


def _header(home: Path, claim: Sequence[Run]) -> Path:
    """Writes what was measured into the head of the experiment's file."""
    file = home / f"{claim[0].experiment}.yaml"
    text = file.read_text(encoding="utf-8")
    lines = textwrap.wrap(f"Measured: {measured(claim)}", WIDTH, initial_indent="# ", subsequent_indent="#   ")
    if not MEASURED.search(text):
        raise UserError(f"{shorten(file)} has no line '# Measured: ...' to put its figures in")
    write_text(file, MEASURED.sub(lambda _: "\n".join(lines) + "\n", text, count=1))
    return file
