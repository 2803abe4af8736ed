"""A job of a sweep, and what is on disk of it."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from hydra.core.override_parser.types import Quote, QuotedString

from vitlab.errors import UserError
from vitlab.runs.directory import RunDirectory

Status = Literal["queued", "running", "done", "failed", "interrupted", "pruned"]
Stage = Literal["new", "begun", "finished"]

HOLD_WHERE_TYPED = ("data.cache_dir=", "data.url=")  # from a run's files they are not taken
SAVES_SECONDS = 120  # for a run that was told to end
SET_ASIDE = "earlier"  # folder in a sweep's: attempts that failed, and were made again


@dataclass
class Job:
    """A run that a sweep makes in a process of its own.

    Args:
        number: Counted from 0, also the name of its folder by default.
        overrides: What is typed after `train.py`.
        folder: The run directory.
        devices: How many it needs; 0: all that there are.
        epochs: `trainer.max_epochs`, None where its length is given otherwise.
        monitor: Metric that is shown, and searched for.
        trusted: Prefixes of the user's own classes in its config.
    """

    number: int
    overrides: list[str]
    folder: Path
    devices: int = 1
    epochs: int | None = None
    monitor: str = "val/acc"
    trusted: Sequence[str] = ()
    status: Status = "queued"
    reason: str = ""
    name: str = ""
    started: float = field(default=0.0, repr=False)

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.folder)

    @property
    def log(self) -> Path:
        """What its process prints."""
        return self.folder / "terminal.log"

    def stage(self) -> Stage:
        """How far the run is by its own files, which hold also where the sweep was killed.

        Of a failed run nothing counts: it is made again.
        """
        try:
            status = self.run.manifest().get("status")
        except UserError:
            return "new"
        if status == "checked" or (status == "finished" and self.run.metrics_file.exists()):
            return "finished"  # "checked": of preflight=only
        begun = status in ("running", "interrupted") and any(self.run.checkpoints.glob("*.ckpt"))
        return "begun" if begun else "new"

    def resuming(self, start: Sequence[str]) -> list[str]:
        """What goes on with the run, behind `python train.py`."""
        trust = [f"trusted_targets=[{','.join(self.trusted)}]"] if self.trusted else []
        typed = [o.lstrip("+") for o in self.overrides if o.lstrip("+").startswith(HOLD_WHERE_TYPED)]
        last = [] if (self.run.checkpoints / "last.ckpt").exists() else ["checkpoint=best"]
        return [*start, f"resume={quoted(str(self.folder))}", *last, *trust, *typed]

    def wait_until_left(self) -> None:
        """Waits for a process that still writes to the run: one that a killed sweep left, and that saves.

        Raises:
            UserError: it does not end.
        """
        if (self.folder / ".lock").exists():
            lock = FileLock(self.folder / ".lock")
            try:
                lock.acquire(timeout=SAVES_SECONDS)
            except Timeout:
                raise UserError(f"another process is writing to {self.folder}, and does not end") from None
            lock.release()

    def make_room(self, sweep: Path) -> None:
        """Moves away what an attempt left that can't be gone on with."""
        if any(self.folder.glob("*")):
            aside = sweep / SET_ASIDE
            aside.mkdir(exist_ok=True)
            self.folder.rename(
                aside / f"{self.folder.name}_{time.strftime('%Y-%m-%d_%H-%M-%S')}_{time.time_ns() % 1000:03d}"
            )
        self.folder.mkdir(parents=True, exist_ok=True)

    def epoch_rows(self) -> list[dict[str, float]]:
        """The rows of `metrics.csv` so far."""
        try:
            return self.run.epoch_rows()
        except (OSError, ValueError):
            return []

    def final_metrics(self) -> dict[str, float]:
        """What `metrics.json` holds; nothing of a run that only checked."""
        return self.run.final_metrics()

    def last_lines(self, count: int) -> list[str]:
        """The end of what it printed, without the progress bar's control characters."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        lines = (re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).rstrip() for line in text.splitlines())
        return [line for line in lines if line][-count:]


def quoted(text: str) -> str:
    """A value in Hydra's grammar that is this text, whatever it has in it."""
    return QuotedString(text, Quote.single).with_quotes()
