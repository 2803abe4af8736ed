"""What ends a run in a way that has an exit status of its own."""

INTERRUPTED, TERMINATED = 130, 143  # exit statuses by Ctrl-C and SIGTERM


class UserError(ValueError):
    """The user's input is wrong: the message is one readable sentence, shown without a traceback; exit status 2."""


class TerminatedError(Exception):
    """The process was asked to end by SIGTERM; exit status 143."""


class PeerError(Exception):
    """Another of the run's processes failed, or is gone, which was said already; exit status 1."""
