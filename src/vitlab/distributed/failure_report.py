"""Name the process that failed first, and end the others."""

import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pytorch_lightning as pl
from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from vitlab.compat import watch_local_ranks
from vitlab.errors import STOPPED, PeerError, TerminatedError, UserError, first_line
from vitlab.files import write_json
from vitlab.system import describe_exit

log = logging.getLogger(__name__)

GRACE_SECONDS = 5.0  # time for the other processes to write their failure reports
PORT_TAKEN = re.compile(r"failed to listen|EADDRINUSE|address already in use", re.IGNORECASE)
LOST_PEER = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|timed? ?out", re.IGNORECASE)


@dataclass(frozen=True)
class Failure:
    """How one process failed. A `secondary` failure only says that another process is gone."""

    rank: int
    time: float
    error: str
    secondary: bool


class FailureReporter(pl.Callback):
    """Write each rank's failure into the run's `ranks/` folder; rank 0 reads them and names the first one."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "ranks"
        self.cause: str | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        run = self.folder.parent
        if trainer.world_size > 1 and not _wait_until((run / "manifest.json").exists):
            raise UserError(
                f"{run.resolve()} is not visible to this machine: several machines need a shared file system for the "
                "run directory (hydra.run.dir=...)"
            )

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # Runs before Lightning's teardown, which removes the signal handlers that protect this process.
        if trainer.world_size == 1 or not isinstance(exception, Exception) or isinstance(exception, TerminatedError):
            return
        own = Failure(trainer.global_rank, time.time(), _sentence(exception), is_secondary(exception))
        if not trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / f"rank_{own.rank}.failure.json", asdict(own))
        elif own.secondary:
            _wait_until(lambda: len(_failures(self.folder)) == trainer.world_size - 1)
            self.cause = self.describe(trainer, own)
            # Print at once: torchrun is about to end this process.
            print(f"error: {self.cause}", file=sys.stderr, flush=True)

    def describe(self, trainer: pl.Trainer, own: Failure | None) -> str:
        reported = [Failure(**json.loads(file.read_text(encoding="utf-8"))) for file in _failures(self.folder)]
        return describe(own, reported, failed_children(trainer), trainer.world_size, self.folder)

    def end_if_child_fails(self, trainer: pl.Trainer, over: threading.Event, end_run: Callable[[], None]) -> None:
        """In a thread: end the run when a child process is gone while rank 0 waits for it in a call that never returns.

        NCCL's calls do not return; gloo's do, and then rank 0 reports the failure itself.
        """
        while not failed_children(trainer):
            if over.wait(0.2):
                return
        rank_zero_noticed = over.wait(2 * GRACE_SECONDS) or self.cause is not None
        if not rank_zero_noticed:
            cause = self.describe(trainer, None)
            kill_children(trainer)
            end_run()
            print(f"error: {cause}", file=sys.stderr, flush=True)
            os._exit(1)


def _wait_until(condition: Callable[[], bool]) -> bool:
    """Wait for files of other processes, which network file systems show late; False if they do not appear."""
    deadline = time.monotonic() + GRACE_SECONDS
    while not (fulfilled := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return fulfilled


def _failures(folder: Path) -> list[Path]:
    return sorted(folder.glob("rank_*.failure.json"))


def clear_failures(run: Path) -> None:
    """Remove the failure reports of an earlier attempt, before the run resumes."""
    for file in _failures(run / "ranks"):
        file.unlink()


def is_secondary(error: BaseException) -> bool:
    """Whether an error only says that another process is gone or does not answer."""
    if PORT_TAKEN.search(str(error)):
        return False
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and bool(LOST_PEER.search(str(error))))


def describe(own: Failure | None, reported: list[Failure], ended: Mapping[int, int], ranks: int, logs: Path) -> str:
    """Name the first failure in one sentence: `own` is rank 0's, if it has failed, and secondary; `reported` are those
    of the other ranks; `ended` is the exit status by rank of rank 0's children (negative: a signal's number)."""
    causes = [failure for failure in reported if not failure.secondary]
    if causes:
        first = min(causes, key=lambda failure: failure.time)
        return f"process {first.rank} of {ranks} failed first: {first.error} ({logs / f'rank_{first.rank}.log'})"
    silent = [rank for rank in range(1, ranks) if rank not in {failure.rank for failure in reported}]
    killed = [f"process {rank} of {ranks} {describe_exit(ended[rank])}" for rank in silent if rank in ended]
    if killed:
        return ", ".join(killed)
    if not silent:
        what = "the processes lost contact with each other" if own else f"process 0 of {ranks} does not answer any more"
        return f"{what} ({(own or reported[0]).error})"
    who = f"process {silent[0]}" if len(silent) == 1 else f"one of the processes {', '.join(map(str, silent))}"
    return f"{who} of {ranks} was killed or does not answer any more" + (f" ({own.error})" if own else "")


def _sentence(error: BaseException) -> str:
    if is_secondary(error):  # drop gloo's C++ source line and its advice
        return re.sub(r"^\[\S+:\d+\] ", "", first_line(error)).split(". ")[0]
    return first_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"


def failed_children(trainer: pl.Trainer) -> dict[int, int]:
    """Exit status by rank of the processes that rank 0 started and that have failed."""
    statuses = {rank: child.poll() for rank, child in enumerate(_children(trainer), start=1)}
    return {rank: status for rank, status in statuses.items() if status not in (None, 0, *STOPPED)}


def kill_children(trainer: pl.Trainer) -> None:
    for child in _children(trainer):
        child.kill()


def _children(trainer: pl.Trainer) -> list[subprocess.Popen[bytes]]:
    return getattr(trainer.strategy.launcher, "procs", [])


@contextmanager
def fail_together(trainer: pl.Trainer, end_run: Callable[[], None]) -> Iterator[None]:
    """Around the work of several processes: when one fails, all end, and rank 0 names the first failure.

    Why not torch's `elastic_launch`: it has one shutdown timeout for two cases. A healthy rank that is told to stop
    needs as long as its step and its checkpoint take; a rank that hangs has to be killed soon. Its workers also have
    sessions of their own, so that a second Ctrl-C would not reach them.

    `end_run` records the failure in the manifest if rank 0 has to be ended from outside.

    Raises PeerError on rank 0 when another process failed first; the other ranks end, with the error in their logs.
    """
    if trainer.world_size == 1:
        yield
        return
    reporter = next(c for c in trainer.callbacks if isinstance(c, FailureReporter))  # type: ignore[attr-defined]
    over = threading.Event()
    watch = threading.Thread(target=reporter.end_if_child_fails, args=(trainer, over, end_run), daemon=True)
    watch_local_ranks(trainer, watch.start)
    try:
        yield
    except TerminatedError:
        raise
    except Exception as error:
        if not trainer.is_global_zero:
            log.error("this process failed", exc_info=error)
            get_error_handler().record_exception(error)  # torchrun prints it
            sys.exit(2 if isinstance(error, UserError) else 1)
        kill_children(trainer)
        if reporter.cause:
            log.info("process 0 failed because of it:", exc_info=error)
            raise PeerError(reporter.cause) from error
        raise
    finally:
        over.set()
