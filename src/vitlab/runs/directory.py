"""The run directory `outputs/<name>/<time>/`: open it, read and write its files."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vitlab.distributed.process import this_process
from vitlab.errors import UserError
from vitlab.files import locked, set_aside, write_json, write_text
from vitlab.runs.metrics_files import Row, read_epochs, read_final
from vitlab.runs.old_config import update_old_config
from vitlab.runs.rebase import check_links

FORMAT = 2  # of a run's files; 1, without this key in the manifest: epochs are counted from 0


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run.

    `config.yaml` (resolved), `manifest.json`, `checkpoints/best.ckpt`, `checkpoints/last.ckpt`, `metrics.csv` (one row
    per epoch), `metrics.json` (final, only of a finished run), `tensorboard/`, `figures/`, `run.log`. Epochs count
    from 1.
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
        """Starts a run: writes `config.yaml` and `manifest.json` (status "running").

        Raises:
            UserError: the directory already holds a run, or is not writable.
        """
        try:
            (self.path / "figures").mkdir(parents=True, exist_ok=True)
            self.manifest_file.open("x").close()
            write_text(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
            status = {"status": "running", "started": _now(), "finished": None, "format": FORMAT}
            write_json(self.manifest_file, {**status, **manifest})
        except FileExistsError:
            raise UserError(
                f"{self.path} holds a run already: choose another directory with hydra.run.dir=..."
            ) from None
        except OSError as error:
            raise UserError(f"can't write the run to {self.path} ({error.strerror or error})") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other runs' processes from writing to this run; rank 0 holds the lock for all ranks, until it ends.

        Raises:
            UserError: another process holds the lock.
        """
        with (
            nullcontext()
            if not this_process().is_rank_zero
            else locked(self.path, f"another process is writing to {self.path}")
        ):
            yield

    def reopen(self, entry: dict[str, Any]) -> None:
        """Records a resume in the manifest, removes half-written files and sets aside the final metrics.

        Args:
            entry: Epoch (from 1) and step at which the run resumes, and this process's origin.
        """
        for stale in self.path.rglob(".*.tmp"):
            stale.unlink(missing_ok=True)
        resumed = [*self.manifest().get("resumed", []), {"time": _now(), **entry}]
        set_aside(self.metrics_file)  # of a finished run that is extended
        self._update_manifest(status="running", finished=None, resumed=resumed)

    def manifest(self) -> dict[str, Any]:
        """The content of `manifest.json` in today's format; empty if the run was killed before it was written.

        Raises:
            UserError: the file can't be read.
        """
        manifest = self._read_manifest()
        if manifest and "format" not in manifest:
            earlier = manifest.get("resumed")
            entries = [entry for entry in earlier if isinstance(entry, dict)] if isinstance(earlier, list) else []
            resumed = [{**entry, "epoch": int(entry.get("epoch", 0)) + 1} for entry in entries]
            manifest |= {"format": FORMAT, **({"resumed": resumed} if resumed else {})}
        return manifest

    def _read_manifest(self) -> dict[str, Any]:
        try:
            text = self.manifest_file.read_text(encoding="utf-8") if self.manifest_file.exists() else ""
            content: Any = json.loads(text or "{}")
        except (OSError, ValueError) as error:
            raise UserError(f"{self.manifest_file} can't be read ({error})") from error
        if not isinstance(content, dict):
            raise UserError(f"{self.manifest_file} holds no keys and values")
        return content

    def epoch_rows(self) -> list[Row]:
        """The rows of `metrics.csv` so far, without empty cells.

        Raises:
            OSError, ValueError: the file can't be read.
        """
        return read_epochs(self.epochs_file)

    def final_metrics(self) -> dict[str, Any]:
        """The content of `metrics.json`; empty before the run has finished.

        Raises:
            OSError, ValueError: the file can't be read.
        """
        return read_final(self.metrics_file, from_zero="format" not in self._read_manifest())

    @classmethod
    def open(cls, path: str, outputs: str, *, key: str = "run", finished: bool = True) -> "RunDirectory":
        """Opens an existing run: `path`, or the newest one below `outputs` if `path` is "latest".

        Args:
            path, outputs: As given on the command line.
            key: The key that `path` was given as, for messages.
            finished: For "latest": take the newest finished run, or the newest one that can be resumed.

        Raises:
            UserError: there is no such run, or it contains links that lead out of it.
        """
        what = "finished run" if finished else "run to resume"
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
        check_links(run.path)  # every verb writes something into the run
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
        """Records in the manifest how the run ended: "finished", "interrupted", "failed" or "checked"."""
        self._update_manifest(status=status, finished=_now())

    def _update_manifest(self, **changes: Any) -> None:
        if this_process().is_rank_zero:
            write_json(self.manifest_file, {**self.manifest(), "format": FORMAT, **changes})

    def checkpoint(self, which: str) -> Path:
        """The file of "best", "last" or a path; "best" is the last checkpoint of a run that selected none.

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


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="microseconds")
