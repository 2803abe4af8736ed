"""What a person can be told about their own input."""


class UserError(ValueError):
    """The user's input is wrong: the message is one readable sentence, shown without a traceback; exit status 2."""
