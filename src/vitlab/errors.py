"""What ends a run in a way that has an exit status of its own."""


class UserError(ValueError):
    """The user's input is wrong: the message is one readable sentence, shown without a traceback; exit status 2."""


class TerminatedError(Exception):
    """The process was asked to end by SIGTERM; exit status 143."""
