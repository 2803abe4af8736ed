"""One run of a sweep, and its state on disk."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from hydra.core.override_parser.types import Quote, QuotedString

from vitlab.errors import UserError
from vitlab.files import shorten
from vitlab.runs.directory import RunDirectory

COMMAND_LINE_ONLY = ("data.cache_dir=", "data.url=")  # never read from a run's files
SAVE_SECONDS = 120  # time for a stopped run to save its checkpoint
EARLIER_ATTEMPTS = "earlier"  # folder in the sweep's directory for failed attempts that were repeated


@dataclass
class Job:
    """One run of a sweep, in its own process."""

    number: int  # counted from 0; also the name of its directory by default
    overrides: list[str]  # arguments for `train.py`
    folder: Path  # the run directory
    devices: int = 1  # number of devices it needs; 0: all
    epochs: int | None = None  # `trainer.max_epochs`; None if the length is set in another way
    monitor: str = "val/acc"  # metric to show and to optimise
    trusted: Sequence[str] = ()  # targets in its config, which resuming it may build again
    status: Literal["queued", "running", "done", "failed", "interrupted", "pruned"] = "queued"
    reason: str = ""
    name: str = ""
    started: float = 0.0  # time

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.folder)

    @property
    def log(self) -> Path:
        """Output of its process."""
        return self.folder / "terminal.log"

    def stage(self) -> Literal["new", "started", "finished"]:
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
        """Wait until no process writes to the run; a killed sweep may leave one that is still saving."""
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

    def last_lines(self, count: int) -> list[str]:
        """Return the end of its output, without the control characters of the progress bar."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        lines = (re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).rstrip() for line in text.splitlines())
        return [line for line in lines if line][-count:]


def quote(text: str) -> str:
    """Quote any text as a value in Hydra's override grammar."""
    return QuotedString(text, Quote.single).with_quotes()
