"""Lightning's ways of being interrupted, told apart."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException

from vitlab.errors import TerminatedError, UserError


@contextmanager
def told_apart(trainer: pl.Trainer) -> Iterator[None]:
    """Around fit, test and validate: Lightning ends the process with 1 at Ctrl-C and with 0 at SIGTERM.

    Raises:
        KeyboardInterrupt: at Ctrl-C.
        TerminatedError: at SIGTERM.
        UserError: where the trainer's settings don't fit together.
    """
    try:
        yield
    except SIGTERMException:
        raise TerminatedError from None
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    except MisconfigurationException as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
