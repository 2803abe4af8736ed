"""The run directory, `outputs/<name>/<time>/`."""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vitlab.config.instantiate import update_old_config
from vitlab.errors import UserError
from vitlab.files import locked, write_json, write_text
from vitlab.runs.rebase import check_links


@dataclass(frozen=True)
class RunDirectory:
    """Where each thing of a run lies.

    `config.yaml` (resolved), `manifest.json`, `checkpoints/best.ckpt`, `checkpoints/last.ckpt`, `metrics.csv` (a row an
    epoch), `metrics.json` (final), `tensorboard/`, `figures/`, `run.log`.
    """

    path: Path

    @property
    def manifest_file(self) -> Path:
        return self.path / "manifest.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.json"

    @property
    def epochs_file(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def create(self, config: dict[str, Any], manifest: dict[str, Any]) -> None:
        """Begins a run: writes `config.yaml` and `manifest.json` (status "running").

        Raises:
            UserError: the directory holds a run already, or can't be written to.
        """
        try:
            (self.path / "figures").mkdir(parents=True, exist_ok=True)
            self.manifest_file.open("x").close()
            write_text(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
            write_json(self.manifest_file, {"status": "running", "started": _now(), "finished": None, **manifest})
        except FileExistsError:
            raise UserError(
                f"{self.path} holds a run already: choose another directory with hydra.run.dir=..."
            ) from None
        except OSError as error:
            raise UserError(f"can't write the run to {self.path} ({error.strerror or error})") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from writing to the run; the operating system ends that with the process.

        Raises:
            UserError: one does already.
        """
        with locked(self.path, f"another process is writing to {self.path}"):
            yield

    def reopen(self, entry: dict[str, Any]) -> None:
        """Notes in the manifest that the run goes on, and removes what a killed process left half written."""
        for stale in self.path.rglob(".*.tmp"):
            stale.unlink(missing_ok=True)
        manifest = self.manifest()
        resumed = [*manifest.get("resumed", []), {"time": _now(), **entry}]
        write_json(self.manifest_file, {**manifest, "status": "running", "finished": None, "resumed": resumed})

    def manifest(self) -> dict[str, Any]:
        """What `manifest.json` holds; nothing, where the run was killed before it was written.

        Raises:
            UserError: it can't be read.
        """
        try:
            text = self.manifest_file.read_text(encoding="utf-8") if self.manifest_file.exists() else ""
            content: Any = json.loads(text or "{}")
        except (OSError, ValueError) as error:
            raise UserError(f"{self.manifest_file} can't be read ({error})") from error
        if not isinstance(content, dict):
            raise UserError(f"{self.manifest_file} holds no keys and values")
        return content

    @classmethod
    def open(cls, path: str, outputs: str, *, key: str = "run", finished: bool = True) -> "RunDirectory":
        """A run that is there: `path`, or where that is "latest" the newest below `outputs`.

        Args:
            path, outputs: As typed.
            key: What `path` was given as, for messages.
            finished: Whether the newest finished run is meant, or the newest of the others that can go on.

        Raises:
            UserError: there is none, or it has links that lead out of it.
        """
        what = "finished run" if finished else "run to go on with"
        if path == "latest":
            runs = [cls(file.parent) for file in Path(outputs).rglob("manifest.json")]
            time = "finished" if finished else "started"
            found = [(str(run.manifest().get(time)), run.path) for run in runs if run._is(finished)]
            if not found:
                raise UserError(f"{key}=latest: there is no {what} below {Path(outputs).resolve()}")
            path = str(max(found)[1])
        run = cls(Path(path))
        if not (run.path / "config.yaml").is_file():
            fault = "is no run directory: it has no config.yaml" if run.path.is_dir() else "does not exist"
            raise UserError(f"{key}={path} {fault}; {key}=latest takes the newest {what} below {outputs}")
        check_links(run.path)  # each verb writes something into the run
        return run

    def _is(self, finished: bool) -> bool:
        try:
            status = self.manifest().get("status")
        except UserError:
            return False
        if finished:
            return status == "finished"
        return status in ("running", "interrupted", "failed") and any(self.checkpoints.glob("*.ckpt"))

    def config(self) -> DictConfig:
        """The resolved config.

        Raises:
            UserError: it can't be read.
        """
        try:
            config = OmegaConf.load(self.path / "config.yaml")
        except Exception as error:
            raise UserError(f"{self.path / 'config.yaml'} can't be read ({error})") from error
        if not isinstance(config, DictConfig):
            raise UserError(f"{self.path / 'config.yaml'} holds no keys and values")
        updated: DictConfig = OmegaConf.create(update_old_config(OmegaConf.to_container(config)))
        return updated

    def end(self, status: str) -> None:
        """Writes how the run ended into the manifest: "finished", "interrupted" or "failed"."""
        write_json(self.manifest_file, {**self.manifest(), "status": status, "finished": _now()})

    def checkpoint(self, which: str) -> Path:
        """The file behind "best", "last" or a path; the best of a run that selected none is its last.

        Raises:
            UserError: there is no such file.
        """
        file = self.checkpoints / f"{which}.ckpt" if which in ("best", "last") else Path(which)
        if which == "best" and not file.exists():
            file = self.checkpoints / "last.ckpt"
        if not file.exists():
            there = ", ".join(sorted(f.name for f in self.checkpoints.glob("*.ckpt"))) or "none"
            raise UserError(f"checkpoint={which}: there is no file {file} (checkpoints of the run: {there})")
        return file

    def epoch_row(self, epoch: int) -> dict[str, float]:
        """The row of `metrics.csv` of an epoch (counted from 0), without empty cells."""
        with self.epochs_file.open(newline="") as file:
            for row in csv.DictReader(file):
                if int(row["epoch"]) == epoch:
                    return {key: float(value) for key, value in row.items() if value}
        return {}


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="microseconds")
