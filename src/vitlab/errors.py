"""Exceptions with an exit status of their own, and suggestions for their messages."""

import errno
import signal
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from vitlab.system import SIGHUP, path_fault

INTERRUPTED, TERMINATED, HUNG_UP = STOPPED = 130, 143, 129  # exit statuses by Ctrl-C, SIGTERM and SIGHUP


# Why a file can't be opened or written, if it is neither a bug nor a wrong name.
FILE_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
)


class UserError(ValueError):
    """The user's input is wrong: the message is one readable sentence, shown without a traceback; exit status 2."""


class TerminatedError(Exception):
    """The process was asked to end by SIGTERM, exit status 143, or its terminal was closed (SIGHUP), status 129."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        self.status = HUNG_UP if number == SIGHUP else TERMINATED


class PeerError(Exception):
    """Another of the run's processes failed, or is gone, which was said already; exit status 1."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class if it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def file_error(error: BaseException | None) -> str:
    """The sentence for an error of the disk, also as the cause of another error; "" for any other error."""
    cause = error if isinstance(error, OSError) else error and error.__cause__
    if not isinstance(cause, OSError) or not (path_fault(cause) or cause.errno in FILE_ERRORS):
        return ""
    return f"can't write{f' {cause.filename}' if cause.filename else ''} ({path_fault(cause) or cause.strerror})"


def list_some(names: Sequence[str], count: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def nearest(word: str, known: Iterable[Any]) -> str:
    """ ". Did you mean 'x'?" for the nearest of the known words, or nothing if none is near."""
    names = sorted(map(str, known))
    folded = {name.casefold(): name for name in reversed(names)}
    near = [word.casefold()] if word.casefold() in folded else []
    near = near or get_close_matches(word, names, n=1) or get_close_matches(word.casefold(), sorted(folded), n=1)
    return f". Did you mean '{folded[near[0].casefold()]}'?" if near else ""


def did_you_mean(word: str, known: Iterable[Any]) -> str:
    """As `nearest`, or a list of the known words if none is near."""
    known = sorted(map(str, known))
    return nearest(word, known) or (f"; choose from {', '.join(known)}" if known else "")
