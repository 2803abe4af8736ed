"""What an entry point owes a person: exit statuses, and one sentence instead of a traceback for wrong input.

Status 0: finished. 2: the user's input is wrong. 130 and 143: interrupted by Ctrl-C and SIGTERM. 1: anything else.
"""

import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from hydra.errors import CompactHydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from vitlab.config.building import did_you_mean
from vitlab.errors import TerminatedError, UserError

INTERRUPTED, TERMINATED = 130, 143


def job(function: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Ends the process in the middle of Hydra's job where `function` fails by the user's hand, so that Hydra adds no
    lines of its own."""

    @functools.wraps(function)
    def wrapped(config: DictConfig) -> Any:
        return _guarded(lambda: function(config))

    return wrapped


def run(main: Callable[[], Any]) -> NoReturn:
    """Calls an entry point's main function and ends the process with the status that its outcome has."""
    # Hydra would print the errors in its own way and exit with 1; with this set it raises them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    _guarded(main)
    sys.exit(0)


def _guarded(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except TerminatedError:
        sys.exit(TERMINATED)
    except (UserError, CompactHydraException, OmegaConfBaseException) as error:
        logging.getLogger(__name__).info("where the error arose:", exc_info=error)  # in run.log alone
        print(f"error: {explain(error)}", file=sys.stderr)
        sys.exit(2)


def explain(error: Exception) -> str:
    """One sentence for an error of the user's, with the nearest right thing where there is one."""
    if isinstance(error, UserError):
        return str(error)
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if not group:
            return f"there is no config file '{option}'"
        options = list(error.options or [])
        return f"there is no {group}={option}{did_you_mean(option, options)} ({group}: {', '.join(options)})"
    if isinstance(cause, MissingMandatoryValue):
        return f"{cause.full_key} must be given: add {cause.full_key}=..."
    if isinstance(cause, OmegaConfBaseException) and "is not in struct" in str(cause):
        known = list(cause.parent_node) if isinstance(cause.parent_node, DictConfig) else []
        return f"unknown key '{cause.full_key}'{did_you_mean(str(cause.key), known)}"
    if isinstance(error, OverrideParseException):
        return f"'{error.override}' is not of the form key=value ({next(iter(str(error.message).splitlines()), '')})"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__
