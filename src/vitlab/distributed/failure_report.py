"""When one of several processes fails, the others do too, with errors that say nothing: which was the first?"""

import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import Popen

import pytorch_lightning as pl
from pytorch_lightning.strategies.launchers import subprocess_script
from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from vitlab.errors import INTERRUPTED, TERMINATED, PeerError, TerminatedError, UserError
from vitlab.files import write_json

log = logging.getLogger(__name__)

GRACE_SECONDS = 5.0  # in which the others write down what became of them
OWN = re.compile(r"failed to listen|EADDRINUSE|address already in use", re.IGNORECASE)
ECHO = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|timed? ?out", re.IGNORECASE)


@dataclass(frozen=True)
class Failure:
    """What a process says of its end; an `echo` is what another's end looks like from here."""

    rank: int
    time: float
    error: str
    echo: bool


class FailureReporter(pl.Callback):
    """Each process that fails writes why into the run's `ranks/`; the first process reads that and names the cause.

    Args:
        run: The run directory.
    """

    def __init__(self, run: Path) -> None:
        self.folder = run / "ranks"
        self.cause: str | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        patience = time.monotonic() + GRACE_SECONDS  # of a file system that tells other machines late
        while trainer.world_size > 1 and not (self.folder.parent / "manifest.json").exists():
            if time.monotonic() > patience:
                raise UserError(
                    f"{self.folder.parent.resolve()} is not the first process's here: several machines need one file "
                    "system for the run directory (hydra.run.dir=...)"
                )
            time.sleep(0.2)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # Before Lightning tears down what it built, and with it the handlers of signals that its launchers now send.
        if trainer.world_size == 1 or not isinstance(exception, Exception) or isinstance(exception, TerminatedError):
            return
        own = Failure(trainer.global_rank, time.time(), _sentence(exception), is_echo(exception))
        if trainer.is_global_zero:
            self.cause = self._find(trainer, own)
            if self.cause:  # at once: torchrun will end this process any moment now
                print(f"error: {self.cause}", file=sys.stderr, flush=True)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self._file(own.rank), asdict(own))

    def _file(self, rank: int) -> Path:
        return self.folder / f"rank_{rank}.failure.json"

    def _find(self, trainer: pl.Trainer, own: Failure) -> str | None:
        """A sentence of the first cause; None where it is this process's own error."""
        if not own.echo:
            return None
        patience = time.monotonic() + GRACE_SECONDS
        while len(self._told(trainer.world_size)) < trainer.world_size - 1 and time.monotonic() < patience:
            time.sleep(0.1)
        return self.describe(trainer, own)

    def describe(self, trainer: pl.Trainer, own: Failure | None) -> str:
        """A sentence of the first cause, where this process's own end is an echo, or it has not come to its end."""
        return describe(own, self._told(trainer.world_size), ended_children(trainer), trainer.world_size, self.folder)

    def _told(self, ranks: int) -> list[Failure]:
        files = [file for rank in range(1, ranks) if (file := self._file(rank)).exists()]
        return [Failure(**json.loads(file.read_text())) for file in files]


def clear_failures(run: Path) -> None:
    """Before a run goes on: what ended it the last time."""
    for file in run.glob("ranks/rank_*.failure.json"):
        file.unlink()


def is_echo(error: BaseException) -> bool:
    """Whether an error only says that another process is gone or does not answer."""
    if OWN.search(str(error)):
        return False
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and ECHO.search(str(error)) is not None)


def describe(own: Failure | None, told: list[Failure], dead: Mapping[int, int], ranks: int, logs: Path) -> str:
    """The first cause in a sentence.

    Args:
        own: The first process's own end, an echo; None where it has not failed, but the others have.
        told: What others said of theirs.
        dead: Exit status of those that this process started and that have ended, negative for a signal's number.
        ranks: How many there are.
        logs: Where they write.
    """
    causes = sorted((failure for failure in told if not failure.echo), key=lambda failure: failure.time)
    if causes:
        first = causes[0]
        return f"process {first.rank} of {ranks} failed first: {first.error} ({logs / f'rank_{first.rank}.log'})"
    silent = [rank for rank in range(1, ranks) if rank not in {failure.rank for failure in told}]
    killed = [f"process {rank} of {ranks} {_end(dead[rank])}" for rank in silent if rank in dead]
    if killed:
        return ", ".join(killed)
    if not silent:
        who = "the processes lost each other" if own else f"process 0 of {ranks} does not answer any more"
        return f"{who} ({(own or told[0]).error})"
    who = f"process {silent[0]}" if len(silent) == 1 else f"one of the processes {', '.join(map(str, silent))}"
    return f"{who} of {ranks} was killed or does not answer any more" + (f" ({own.error})" if own else "")


def _end(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    name = signal.Signals(-status).name
    return f"was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def _sentence(error: BaseException) -> str:
    line = next(iter(str(error).splitlines()), "")
    if is_echo(error):
        return re.sub(r"^\[\S+:\d+\] ", "", line).split(". ")[0]  # without gloo's place in C++ and its advice
    return line if isinstance(error, UserError) else f"{type(error).__name__}: {line}"


def children(trainer: pl.Trainer) -> list[Popen[bytes]]:
    """The processes that Lightning's launcher started from here, by rank from 1 on."""
    return list(getattr(trainer.strategy.launcher, "procs", []))


def ended_children(trainer: pl.Trainer) -> dict[int, int]:
    """The rank and exit status of those that have failed."""
    return {
        rank: child.returncode
        for rank, child in enumerate(children(trainer), start=1)
        if child.poll() not in (None, 0, INTERRUPTED, TERMINATED)
    }


class ChildWatch(threading.Thread):
    """Ends the run where a process that Lightning started is gone, and this one waits for it in a call that does not
    come back, as NCCL's do not."""

    def __init__(self, trainer: pl.Trainer, first: FailureReporter, end_run: Callable[[], None]) -> None:
        super().__init__(daemon=True, name="child-watch")
        self.trainer, self.first, self.end_run = trainer, first, end_run
        self.over = threading.Event()  # what comes then is the first process's own affair

    def run(self) -> None:
        while not ended_children(self.trainer):
            if self.over.wait(0.2):
                return
        came_back = self.over.wait(2 * GRACE_SECONDS) or self.first.cause is not None  # this process ends by itself
        if not came_back:
            cause = self.first.describe(self.trainer, None)
            for child in children(self.trainer):
                child.kill()
            self.end_run()
            print(f"error: {cause}", file=sys.stderr, flush=True)
            os._exit(1)


@contextmanager
def fail_together(trainer: pl.Trainer, end_run: Callable[[], None]) -> Iterator[None]:
    """Around what several processes do together: where one fails, all end, and the first process says why.

    Args:
        trainer: Theirs.
        end_run: Notes the run's failure, where the first process is ended as it stands.

    Raises:
        PeerError: in the first process, where the cause lies with another.
        SystemExit: in the others, whose errors go to their logs.
    """
    if trainer.world_size == 1:
        yield
        return
    first = next(callback for callback in trainer.callbacks if isinstance(callback, FailureReporter))  # type: ignore[attr-defined]

    watch = ChildWatch(trainer, first, end_run)

    def begin(child_processes: list[Popen[bytes]]) -> None:
        watch.start()

    theirs = subprocess_script._launch_process_observer  # it kills all processes without a word
    subprocess_script._launch_process_observer = begin
    try:
        yield
    except TerminatedError:
        raise
    except Exception as error:
        if not trainer.is_global_zero:
            log.error("this process failed", exc_info=error)
            get_error_handler().record_exception(error)  # for torchrun's own words
            sys.exit(2 if isinstance(error, UserError) else 1)
        for child in children(trainer):
            child.kill()
        if first.cause:
            log.info("what the first process saw of it:", exc_info=error)
            raise PeerError(first.cause) from error
        raise
    finally:
        watch.over.set()
        subprocess_script._launch_process_observer = theirs
