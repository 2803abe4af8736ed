"""Adapt other libraries: their exits, their warnings, and their private names."""

import errno
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException
from torch.distributed import DistError

from vitlab.errors import TerminatedError, UserError

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def _is_disk(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in DISK


@contextmanager
def translate_lightning_exits(trainer: pl.Trainer) -> Iterator[None]:
    """Around fit, test and validate: Lightning ends the process with 1 at Ctrl-C and with 0 at SIGTERM.

    Raises:
        KeyboardInterrupt: at Ctrl-C.
        TerminatedError: at SIGTERM.
        UserError: where the trainer's settings don't fit together, the disk takes no more, or a port is taken.
    """
    show = threading.excepthook
    threading.excepthook = lambda found: None if _is_disk(found.exc_value) else show(found)  # TensorBoard's writer
    try:
        yield
    except SIGTERMException:
        raise TerminatedError from None
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # not one of the network's own
            raise KeyboardInterrupt from None
        raise
    except OSError as error:
        if not _is_disk(error):
            raise
        what = f" {error.filename}" if error.filename else ""
        raise UserError(f"can't write{what}: {error.strerror}; what was saved before is whole") from error
    except DistError as error:
        if "listen" not in str(error):
            raise
        raise UserError(f"the port {os.environ.get('MASTER_PORT')} is taken: set another MASTER_PORT=...") from error
    except MisconfigurationException as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    finally:
        threading.excepthook = show


def logged_step(trainer: pl.Trainer) -> int:
    """The step at which Lightning's loggers log next: it also counts steps whose update was skipped (Lightning 2.6)."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


# Each is said by a library about itself or about a choice that the config makes on purpose.
_HARMLESS_WARNINGS = (
    r".*isinstance\(treespec, LeafSpec\).* is deprecated",  # Lightning's, of torch's pytree
    r"The number of training batches .* is smaller than the logging interval",
    r".*`lr_scheduler\.step\(\)` before `optimizer\.step\(\)`",  # Lightning's order of calls under float16
    r"`training_step` returned `None`",  # callbacks.nan.action=skip counts them
    r"Checkpoint directory .* exists and is not empty",
)


def silence_libraries() -> None:
    """Drop the libraries' messages below warnings, and harmless warnings; others reach the terminal and run.log."""
    for message in _HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a run.log on a full disk is the least of the worries
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()  # a handler of their own, which writes to the terminal
        logger.propagate = True
        logger.setLevel(logging.WARNING)
