"""What was typed for a sweep, typed again: `sweep=resume:<dir>`, and what to tell the user to type."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from vitlab.errors import UserError
from vitlab.files import shorten
from vitlab.sweeps.job import HOLD_WHERE_TYPED, quoted
from vitlab.sweeps.sweep_file import read_record

RESUME = "sweep=resume:"
OF_SWEEPS = (  # of Hydra's own keys those that say only how a sweep is made
    *("hydra/sweeper=", "hydra/sweeper/", "hydra/launcher=", "hydra.sweeper."),
    *("hydra.launcher.jobs=", "hydra.sweep.subdir="),
)
WRITE = ("logger.", "callbacks.", "trainer.")  # groups with paths that are written to


def with_earlier_arguments(arguments: Sequence[str]) -> list[str]:
    """Puts in place of `sweep=resume:<dir>` what was typed for the sweep in that directory.

    Raises:
        UserError: there is no sweep, it was started elsewhere, or it could run code or write elsewhere.
    """
    found = [argument for argument in arguments if argument.startswith(RESUME)]
    if not found:
        return list(arguments)
    folder = Path(found[0].removeprefix(RESUME))
    record = read_record(folder)
    refused = [argument for argument in record["arguments"] if not is_harmless(argument)]
    if refused:
        raise UserError(
            f"{folder}: {refused[0]} is taken only where it is typed: if you trust it, type the sweep's command again, "
            f"with hydra.sweep.dir={folder}"
        )
    if record["cwd"] != str(Path.cwd()):
        raise UserError(
            f"{folder}: the sweep was started in {record['cwd']}, from where its paths hold: go there, or type its "
            f"command again, with hydra.sweep.dir={folder}"
        )
    others = [argument for argument in arguments if argument not in (*found, "-m", "--multirun")]
    return ["-m", *record["arguments"], *others, f"hydra.sweep.dir={quoted(str(folder))}"]


def is_harmless(argument: str) -> bool:
    """Whether an argument may come from a file that somebody else may have written: it names no code, and no place to
    write to or to load from."""
    key, _, value = argument.lstrip("+~").partition("=")
    if argument.startswith("-") or "_target_" in argument or argument.lstrip("+").startswith(HOLD_WHERE_TYPED):
        return False
    if key.startswith("hydra"):
        return argument.startswith(OF_SWEEPS)
    return not (key.startswith(WRITE) and ("/" in value or ".." in value))


def to_go_on(arguments: Sequence[str], folder: Path) -> str:
    """The command that goes on with a sweep."""
    place = shorten(folder)
    if all(map(is_harmless, arguments)):
        return f"python train.py -m {shlex.quote(RESUME + place)}"
    return f"python train.py -m {shlex.join(arguments)} {shlex.quote(f'hydra.sweep.dir={place}')}"
