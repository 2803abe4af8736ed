"""One run of a sweep, and its state on disk."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from hydra.core.override_parser.types import Quote, QuotedString

from vitlab.errors import UserError
from vitlab.files import shorten
from vitlab.runs.directory import RunDirectory

Status = Literal["queued", "running", "done", "failed", "interrupted", "pruned"]
Stage = Literal["new", "started", "finished"]

COMMAND_LINE_ONLY = ("data.cache_dir=", "data.url=")  # never read from a run's files
SAVE_SECONDS = 120  # time for a stopped run to save its checkpoint
EARLIER_ATTEMPTS = "earlier"  # folder in the sweep's directory for failed attempts that were repeated


@dataclass
class Job:
    """One run of a sweep, in its own process.

    Args:
        number: Counted from 0; also the name of its directory by default.
        overrides: Arguments for `train.py`.
        folder: The run directory.
        devices: Number of devices it needs; 0: all.
        epochs: `trainer.max_epochs`, None if the length is set in another way.
        monitor: Metric to show and to optimise.
        trusted: Targets in its config, which resuming it may build again.
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
        """Output of its process."""
        return self.folder / "terminal.log"

    def stage(self) -> Stage:
        """Tell from the run's files how far it got; they are correct even if the sweep was killed.

        A failed run counts as new, because it is repeated from the start.
        """
        try:
            status = self.run.manifest().get("status")
        except UserError:
            return "new"
        if status == "checked" or (status == "finished" and self.run.metrics_file.exists()):
            return "finished"  # "checked" comes from preflight=only
        started = status in ("running", "interrupted") and any(self.run.checkpoints.glob("*.ckpt"))
        return "started" if started else "new"

    def resume_command(self, start: Sequence[str]) -> list[str]:
        """Return the command that resumes the run; `start` is `python train.py`."""
        trust = [f"trusted_targets=[{','.join(self.trusted)}]"] if self.trusted else []
        given = [o.lstrip("+") for o in self.overrides if o.lstrip("+").startswith(COMMAND_LINE_ONLY)]
        best = [] if (self.run.checkpoints / "last.ckpt").exists() else ["checkpoint=best"]
        return [*start, f"resume={quote(str(self.folder))}", *best, *trust, *given]

    def wait_for_writer(self) -> None:
        """Wait until no process writes to the run; a killed sweep may leave one that is still saving.

        Raises:
            UserError: It does not end within two minutes.
        """
        try:
            if (self.folder / ".lock").exists():
                with FileLock(self.folder / ".lock", timeout=SAVE_SECONDS):
                    pass
        except Timeout:
            raise UserError(f"another process is still writing to {shorten(self.folder)}") from None

    def set_aside_earlier_attempt(self, sweep: Path) -> None:
        """Move the files of an attempt that cannot be resumed to `earlier/`, and make an empty directory."""
        if any(self.folder.glob("*")):
            (sweep / EARLIER_ATTEMPTS).mkdir(exist_ok=True)
            name = f"{self.folder.name}_{time.strftime('%Y-%m-%d_%H-%M-%S')}_{time.time_ns() % 1000:03d}"
            self.folder.rename(sweep / EARLIER_ATTEMPTS / name)
        self.folder.mkdir(parents=True, exist_ok=True)

    def epochs_so_far(self) -> list[dict[str, float]]:
        """Return the rows of `metrics.csv`; none if there is no complete file yet."""
        try:
            return self.run.epoch_rows()
        except (OSError, ValueError):
            return []

    def final_metrics(self) -> dict[str, float]:
        """Return the content of `metrics.json`; empty for a run that was only checked."""
        return self.run.final_metrics()

    def last_lines(self, count: int) -> list[str]:
        """Return the end of its output, without the control characters of the progress bar."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        lines = (re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).rstrip() for line in text.splitlines())
        return [line for line in lines if line][-count:]


def quote(text: str) -> str:
    """Quote any text as a value in Hydra's override grammar."""
    return QuotedString(text, Quote.single).with_quotes()
