"""Draw every figure of a run, each with its caption beside it."""
