"""`sweep.json`: which jobs a sweep has, and how they stand. It is what a broken sweep goes on from."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitlab.errors import UserError
from vitlab.files import locked, write_json
from vitlab.runs.rebase import check_links
from vitlab.sweeps.job import Job

FILE = "sweep.json"


def read_record(folder: Path) -> dict[str, Any]:
    """What `sweep.json` holds: `arguments` of the command, the folder that it was typed in (`cwd`), `jobs`.

    Raises:
        UserError: there is none, or it can't be read.
    """
    file = folder / FILE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        whole = all({"number", "overrides", "folder", "status", "reason"} <= set(job) for job in record["jobs"])
        if not whole or not all(isinstance(text, str) for text in (record["cwd"], *record["arguments"])):
            raise ValueError("it is not as a sweep writes it")
    except FileNotFoundError:
        raise UserError(f"{folder} holds no sweep: there is no {file}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} can't be read ({error})") from error
    return record


def write_record(folder: Path, arguments: Sequence[str], jobs: Iterable[Job]) -> None:
    rows = [
        {
            "number": job.number,
            "overrides": job.overrides,
            "folder": str(job.folder.relative_to(folder)),
            "status": job.status,
            "reason": job.reason,
        }
        for job in sorted(jobs, key=lambda job: job.number)
    ]
    write_json(folder / FILE, {"arguments": list(arguments), "cwd": str(Path.cwd()), "jobs": rows})


@contextmanager
def sweep_lock(folder: Path) -> Iterator[None]:
    """Keeps other processes from running the sweep.

    Raises:
        UserError: one does already, or links in the folder lead out of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_links(folder)
    with locked(folder, f"another process runs the sweep in {folder}"):
        yield
