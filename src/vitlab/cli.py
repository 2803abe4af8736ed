"""What an entry point owes a person: exit statuses, and one sentence instead of a traceback for wrong input.

Status 0: finished. 2: the user's input is wrong. 130 and 143: interrupted by Ctrl-C and SIGTERM. 1: anything else.
"""

import functools
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from omegaconf import DictConfig

from vitlab.config.check import FILLING, GROUPS
from vitlab.config.command import CONF, read_command
from vitlab.config.compose import NOT_COMPOSED, composition_mistakes, explain
from vitlab.config.importing import no_gc_imports
from vitlab.distributed.orphans import die_with_parent
from vitlab.distributed.process import check_start, this_process
from vitlab.distributed.slurm import is_requeued
from vitlab.errors import INTERRUPTED, TERMINATED, PeerError, TerminatedError, UserError


def job(function: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Ends the process in the middle of Hydra's job where `function` fails by the user's hand, so that Hydra adds no
    lines of its own."""

    @functools.wraps(function)
    def wrapped(config: DictConfig) -> Any:
        return _guarded(lambda: function(config), lambda error: [explain(error)])

    return wrapped


def run(main: Callable[[], Any]) -> NoReturn:
    """Calls an entry point's main function and ends the process with the status that its outcome has."""
    _guarded(lambda: check_start(several=False), lambda error: [explain(error)])
    _run(main)


def _run(main: Callable[[], Any]) -> NoReturn:
    _guarded(main, lambda error: [explain(error)])
    sys.exit(0)


def launch(main: Callable[[], Any]) -> NoReturn:
    """As `run`, for a main function whose config Hydra composes: what does not compose is said all at once.

    A command that SLURM or torchrun gives again goes on with the run that it began.
    """
    many = any(argument in ("-m", "--multirun") or argument.startswith("sweep=") for argument in sys.argv[1:])
    _guarded(lambda: check_start(several=not many), lambda error: [explain(error)])
    if this_process().started_by == "Lightning":  # a rank that waits for the first one in vain is of no use
        die_with_parent(signal.SIGKILL)
    repeated = is_requeued() and not any(argument.startswith(("resume=", "-")) for argument in sys.argv[1:])
    if repeated and _guarded(_resume_requeued, lambda error: [explain(error)]):
        sys.exit(0)
    for verb, function in (("resume", _resume), ("reproduce", _reproduce)):
        if any(argument.startswith(f"{verb}=") for argument in sys.argv[1:]):
            _run(function)
    if any(argument.startswith("sweep=resume:") for argument in sys.argv[1:]):
        from vitlab.sweeps.retyping import with_earlier_arguments

        sys.argv[1:] = _guarded(lambda: with_earlier_arguments(sys.argv[1:]), lambda error: [explain(error)])
    for argument in sys.argv[1:]:
        group, _, option = argument.partition("=")
        if group in (*GROUPS, *FILLING) and re.fullmatch(r"null|true|false|-?[\d.]+", option):  # Hydra fails at it
            options = ", ".join(sorted(file.stem for file in (CONF / group).glob("*.yaml")))
            print(f"error: {argument}: no such choice; choose of {options}", file=sys.stderr)
            sys.exit(2)
    # Hydra would print the errors in its own way and exit with 1; with this set it raises them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    _guarded(main, lambda error: composition_mistakes(sys.argv[1:]) or [explain(error)])
    sys.exit(0)


def _resume() -> None:
    command, overrides = read_command(CONF, "resume", sys.argv[1:])
    with no_gc_imports():
        from vitlab.resume import resume

    resume(command, overrides, CONF)


def _resume_requeued() -> bool:
    with no_gc_imports():
        from vitlab.resume import resume_requeued

    return resume_requeued(sys.argv[1:])


def _reproduce() -> None:
    command, overrides = read_command(CONF, "reproduce", sys.argv[1:])
    with no_gc_imports():
        from vitlab.resume import reproduce

    reproduce(command, overrides, CONF)


def _guarded(function: Callable[[], Any], describe: Callable[[Exception], Sequence[str]]) -> Any:
    try:
        return function()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except TerminatedError:
        sys.exit(TERMINATED)
    except PeerError:
        sys.exit(1)
    except Exception as error:
        logging.getLogger(__name__).info("traceback:", exc_info=error)  # in run.log only
        if not isinstance(error, (UserError, *NOT_COMPOSED)):
            raise
        for line in describe(error):
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
