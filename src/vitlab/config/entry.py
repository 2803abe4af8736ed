"""What an entry point owes a person: exit statuses, and one sentence instead of a traceback for wrong input.

Status 0: finished. 2: the user's input is wrong. 130 and 143: interrupted by Ctrl-C and SIGTERM. 1: anything else.
"""

import functools
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from vitlab.config.building import did_you_mean
from vitlab.config.command import CONF
from vitlab.config.run_guard import describe_mistakes
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
    _guarded(main)
    sys.exit(0)


def launch(main: Callable[[], Any]) -> NoReturn:
    """As `run`, for a main function whose config Hydra composes: what does not compose is said all at once."""
    # Hydra would print the errors in its own way and exit with 1; with this set it raises them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    _guarded(main, lambda error: composition_mistakes(sys.argv[1:]) or [explain(error)])
    sys.exit(0)


def composition_mistakes(arguments: Sequence[str]) -> list[str]:
    """A sentence for each argument that keeps the config from composing, and for each mistake in what is left of it.

    Nothing where the arguments are more than overrides.
    """
    if any(argument.startswith("-") for argument in arguments):
        return []
    overrides, lines = list(arguments), []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        while True:
            try:
                config = compose("train", overrides, return_hydra_config=True)
            except (CompactHydraException, OmegaConfBaseException) as error:
                lines.append(explain(error))
                culprit = _culprit(error, overrides)
                if culprit is None:
                    return lines
                overrides.remove(culprit)
            else:
                HydraConfig.instance().set_config(config)
                return lines + describe_mistakes(config)


def _culprit(error: Exception, overrides: Sequence[str]) -> str | None:
    """The override that an error of Hydra's is about."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(error, OverrideParseException):
        return str(error.override)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return next((o for o in overrides if o.lstrip("+") == f"{group}={option}"), None)
    key = str(getattr(cause, "full_key", None))
    return next((o for o in overrides if o.lstrip("+~").split("=")[0].split("@")[0] == key), None)


def _guarded(
    function: Callable[[], Any], describe: Callable[[Exception], Sequence[str]] = lambda error: [explain(error)]
) -> Any:
    try:
        return function()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except TerminatedError:
        sys.exit(TERMINATED)
    except (UserError, CompactHydraException, OmegaConfBaseException) as error:
        logging.getLogger(__name__).info("where the error arose:", exc_info=error)  # in run.log alone
        for line in describe(error):
            print(f"error: {line}", file=sys.stderr)
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
