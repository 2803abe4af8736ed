"""The run directory, `outputs/<name>/<time>/`."""

import csv
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vitlab.errors import UserError
from vitlab.files import write_json, write_text


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

    @classmethod
    def open(cls, path: str, outputs: str) -> "RunDirectory":
        """A run that is there: `path`, or where that is "latest" the newest finished run below `outputs`.

        Raises:
            UserError: there is none.
        """
        if path == "latest":
            return cls._latest(Path(outputs))
        run = cls(Path(path))
        if not (run.path / "config.yaml").is_file():
            what = "is no run directory: it has no config.yaml" if run.path.is_dir() else "does not exist"
            raise UserError(f"run={path} {what}; run=latest takes the newest finished run below {outputs}")
        return run

    @classmethod
    def _latest(cls, outputs: Path) -> "RunDirectory":
        finished = []
        for file in outputs.rglob("manifest.json"):
            manifest = json.loads(file.read_text(encoding="utf-8") or "{}")
            if manifest.get("status") == "finished":
                finished.append((manifest["finished"], file.parent))
        if not finished:
            raise UserError(f"run=latest: there is no finished run below {outputs.resolve()}")
        return cls(max(finished)[1])

    def config(self) -> DictConfig:
        """The resolved config.

        Raises:
            UserError: it can't be read.
        """
        try:
            config = OmegaConf.load(self.path / "config.yaml")
        except Exception as error:
            raise UserError(f"{self.path / 'config.yaml'} can't be read ({error})") from error
        assert isinstance(config, DictConfig)
        return config

    def end(self, status: str) -> None:
        """Writes how the run ended into the manifest: "finished", "interrupted" or "failed"."""
        manifest = json.loads(self.manifest_file.read_text(encoding="utf-8"))
        write_json(self.manifest_file, {**manifest, "status": status, "finished": _now()})

    def checkpoint(self, which: str) -> Path:
        """The file behind "best", "last" or a path; the best of a run that selected none is its last.

        Raises:
            UserError: there is no such file.
        """
        file = self.checkpoints / f"{which}.ckpt" if which in ("best", "last") else Path(which)
        if which == "best" and not file.exists():
            file = self.checkpoints / "last.ckpt"
        if not file.is_file():
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
