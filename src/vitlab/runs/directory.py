"""The run directory `outputs/<name>/<time>/`: open, read and write it."""

import csv
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vitlab.config.instantiate import map_texts
from vitlab.distributed.process import this_process
from vitlab.errors import UserError
from vitlab.files import locked, set_aside, write_csv, write_json, write_text
from vitlab.runs.old_config import update_old_config
from vitlab.runs.trust import check_links
from vitlab.system import WINDOWS

Row = dict[str, float]  # of metrics.csv
FORMAT = 2  # of a run's files; 1, without this key in the manifest: epochs are counted from 0
HOLDS_A_RUN = "{} holds a run already: choose another directory with hydra.run.dir=..."


class RunDirectory:
    """The files of one run. Epochs count from 1."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest_file = path / "manifest.json"
        self.metrics_file = path / "metrics.json"  # final, only of a finished run
        self.epochs_file = path / "metrics.csv"  # one row per epoch
        self.unreadable_file = path / "unreadable_images.txt"  # left out, with the reasons; only if there are any
        self.checkpoints = path / "checkpoints"  # best.ckpt, last.ckpt

    def create(self, config: dict[str, Any], manifest: dict[str, Any]) -> None:
        """Starts a run: writes `config.yaml` and `manifest.json`; UserError if it can't."""
        try:
            (self.path / "figures").mkdir(parents=True, exist_ok=True)
            self.manifest_file.touch(exist_ok=False)
            write_text(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
            status = {"status": "running", "started": _now(), "finished": None, "format": FORMAT}
            write_json(self.manifest_file, {**status, **manifest})
        except FileExistsError:
            raise UserError(HOLDS_A_RUN.format(self.path)) from None
        except OSError as error:
            reason = f"can't write the run to {self.path} ({error.strerror or error})"
            raise UserError(f"{reason}: choose another folder with hydra.run.dir=...") from error

    def locked(self) -> AbstractContextManager[None]:
        """Keeps other processes from writing to this run; rank 0 holds the lock for all. UserError if it is taken."""
        if not this_process().is_rank_zero:
            return nullcontext()
        return locked(self.path, f"another process is writing to {self.path}")

    def reopen(self, entry: dict[str, Any]) -> None:
        """Records in the manifest how the run resumes, removes half-written files, sets aside the final metrics."""
        for stale in self.path.rglob(".*.tmp"):
            stale.unlink(missing_ok=True)
        resumed = [*self.manifest().get("resumed", []), {"time": _now(), **entry}]
        set_aside(self.metrics_file)  # of a finished run that is extended
        self._update_manifest(status="running", finished=None, resumed=resumed)

    def manifest(self) -> dict[str, Any]:
        """`manifest.json` in today's format, empty if the run was killed before; UserError if it can't be read."""
        manifest = self._read_manifest()
        if manifest and "format" not in manifest:
            manifest["format"] = FORMAT
            with suppress(TypeError, KeyError):  # somebody edited it
                for entry in manifest.get("resumed", []):
                    entry["epoch"] += 1
        return manifest

    def _read_manifest(self) -> dict[str, Any]:
        try:
            return _read_json(self.manifest_file)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.manifest_file} can't be read ({error})") from error

    def epoch_rows(self) -> list[Row]:
        """The rows of `metrics.csv` so far, without empty cells; OSError or ValueError if it can't be read."""
        if not self.epochs_file.exists():
            return []
        with self.epochs_file.open(newline="", encoding="utf-8") as lines:
            rows = [row for row in csv.DictReader(lines) if row.get("epoch")]
        return count_from_one([{name: float(value) for name, value in row.items() if name and value} for row in rows])

    def final_metrics(self) -> dict[str, Any]:
        """`metrics.json`, empty before the run has finished; OSError or ValueError if it can't be read."""
        metrics = _read_json(self.metrics_file)
        if not metrics or "format" in self._read_manifest():
            return metrics
        if "epoch" in metrics:
            metrics["epoch"] += 1
        return shorten_values(metrics)

    @classmethod
    def open(cls, path: str, outputs: str, *, key: str = "run", finished: bool = True) -> "RunDirectory":
        """Opens an existing run.

        `path` is its directory or a file in it, its name below `outputs`, or a folder of runs, of which it takes the
        newest that is `finished`, or else that can be resumed; "latest" is the folder `outputs`, "x/latest" the folder
        `x`. `key` is the key that `path` was given as. UserError if there is no such run, or if it contains links that
        lead out of it."""
        what = "finished run" if finished else "run to resume"
        if not path:
            raise UserError(f"{key}= is empty: name a run directory; {key}=latest takes the newest {what}")
        places = [Path(outputs)] if path == "latest" else [Path(path), Path(outputs, path)]
        if Path(path).name == "latest" != path and not any(map(Path.exists, places)):  # no run of this name
            places = [place.parent for place in places]
        place = next((place for place in places if place.exists()), places[0])
        inside = path != "latest" and place.exists()
        folder = (run_around(place) if inside else None) or _newest(place, finished)
        if folder is None and path == "latest":
            raise UserError(f"{key}=latest: there is no {what} below {place.resolve()}")
        if folder is None and place.is_file():
            raise UserError(
                f"{key}={path} is in no run directory; init_from=<checkpoint> starts a new run from a checkpoint"
            )
        if folder is None:
            fault = f"is no run directory and holds no {what}" if place.exists() else "does not exist"
            raise UserError(f"{key}={path} {fault}; {key}=latest takes the newest {what} below {outputs}")
        check_links(folder)  # every verb writes something into the run
        return cls(folder)

    def config(self) -> DictConfig:
        """The resolved config; UserError if it can't be read."""
        file = self.path / "config.yaml"
        try:
            config = OmegaConf.load(file)
        except Exception as error:
            raise UserError(f"{file} can't be read ({error})") from error
        if not isinstance(config, DictConfig):
            raise UserError(f"{file} holds no keys and values")
        updated: DictConfig = OmegaConf.create(update_old_config(OmegaConf.to_container(config)))
        return updated

    def end(self, status: str) -> None:
        """Records in the manifest how the run ended: "finished", "interrupted", "failed" or "checked"."""
        self._update_manifest(status=status, finished=_now())

    def _update_manifest(self, **changes: Any) -> None:
        if this_process().is_rank_zero:
            write_json(self.manifest_file, {**self.manifest(), "format": FORMAT, **changes})

    def checkpoint(self, which: str) -> Path:
        """The file of "best" (the last one if the run selected none), "last" or a path; UserError if it is missing."""
        file = self.checkpoints / f"{which}.ckpt" if which in ("best", "last") else Path(which)
        if which == "best" and not file.exists():
            file = self.checkpoints / "last.ckpt"
        if not file.exists():
            there = ", ".join(sorted(f.name for f in self.checkpoints.glob("*.ckpt"))) or "none"
            raise UserError(f"checkpoint={which}: there is no file {file} (checkpoints of the run: {there})")
        return file


def is_run_directory(folder: Path) -> bool:
    """Whether a folder looks like a run: `config.yaml` alone may be that of the project that runs are made in."""
    known = (folder / name for name in ("manifest.json", "checkpoints"))
    return (folder / "config.yaml").is_file() and any(map(Path.exists, known))


def run_around(path: Path) -> Path | None:
    """The run directory that a path is, or that it lies in; None without one."""
    depth = 3 if path.absolute().parent.parent.name == "checkpoints" else 2  # where a user's callback has a folder
    return next(filter(is_run_directory, (path, *path.parents[:depth], *path.absolute().parents[:depth])), None)


def _newest(place: Path, finished: bool) -> Path | None:
    """The newest run below a folder that is `finished`, or else that can be resumed."""
    wanted = ("finished",) if finished else ("running", "interrupted", "failed")
    found = []
    for run in (RunDirectory(file.parent) for file in place.rglob("manifest.json")):
        with suppress(UserError):  # of an unreadable manifest
            manifest = run.manifest()
            if manifest.get("status") in wanted and (finished or any(run.checkpoints.glob("*.ckpt"))):
                found.append((moment(manifest.get("finished" if finished else "started")), run.path))
    return max(found)[1] if found else None


def checkpoint_named(path: str, outputs: str, otherwise: str) -> str:
    """The checkpoint that `path` names, here or below `outputs`, or `otherwise` if it names a run."""
    places = Path(path), Path(outputs, path)  # without the slash that a shell appends to a sharded checkpoint, a folder
    return next((str(place) for place in places if place.suffix == ".ckpt" and place.exists()), otherwise)


def _read_json(file: Path) -> dict[str, Any]:
    """The keys and values in a file; none if it is missing or empty."""
    content: Any = json.loads((file.exists() and file.read_text(encoding="utf-8")) or "{}")
    if not isinstance(content, dict):
        raise ValueError("it holds no keys and values")
    return content


def moment(text: object) -> datetime:
    """The time that a manifest gives, in whatever time zone; the distant past if it gives none."""
    with suppress(ValueError):
        return datetime.fromisoformat(str(text)).astimezone()
    return datetime.min.replace(tzinfo=UTC)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="microseconds")


def shorten_values(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics with floats as the shortest decimal numbers of the same float32 values (0.956, where float(tensor) is
    0.9559999704360962), except `seconds`, which float32 would round."""
    import numpy as np  # not before: the config is checked before it is imported

    return {
        name: float(str(np.float32(value))) if isinstance(value, float) and name != "seconds" else value
        for name, value in metrics.items()
    }


def count_from_one(rows: Sequence[Row]) -> list[Row]:
    """Rows of `metrics.csv` with epochs counted from 1: an earlier version's first row is epoch 0."""
    offset = 1 if rows and rows[0]["epoch"] == 0 else 0
    return [{**row, "epoch": row["epoch"] + offset} for row in rows]


def write_epochs(file: Path, rows: Sequence[Mapping[str, float]], columns: Sequence[str]) -> None:
    """Writes `metrics.csv` whole: a column for epoch, step, seconds and each of `columns`."""
    columns = ("epoch", "step", "seconds", *columns)
    write_csv(file, columns, [[row.get(name) for name in columns] for row in map(shorten_values, rows)])


def rebase_paths(node: Any, before: str, now: str) -> Any:
    """Replaces the folder `before` by `now` in all paths of a config, given and returned as plain data; `before` may be
    a folder of another system."""
    of_windows = "\\" in before

    def rebase(text: str) -> str:
        path = text.removeprefix("sqlite:///")
        inside = path.removeprefix(before)
        if not path.startswith(before) or inside[:1] not in ("", "/", *(["\\"] if of_windows else [])):
            return text
        return text.removesuffix(path) + now + (inside.replace("\\", "/") if of_windows and not WINDOWS else inside)

    return map_texts(node, rebase)
