"""Name vitlab's commands as the user types them: python train.py, or vitlab train."""

import os
import re
import sys
from pathlib import Path

from vitlab.files import IS_CLONE, ROOT
from vitlab.system import join_command, quote_for_shell, split_command

# Set by the console script and the Python API, also for the processes that they start: `vitlab train` is typed there.
CONSOLE_SCRIPT = "VITLAB_CONSOLE_SCRIPT"
SCRIPT = re.compile(r"(?<![\w/.'-])(?<!timm's )(?:python )?(train|evaluate|predict)\.py\b|python -m vitlab\.(\w+)")


def pretend_script(verb: str, *arguments: str) -> None:
    """Make this process's command that of a script, which Lightning and sweeps start other processes with; messages
    call it `vitlab <command>`."""
    os.environ[CONSOLE_SCRIPT] = "yes"
    sys.modules["__main__"].__spec__ = None  # that of `python -m` would be started instead
    sys.argv[:] = [str(ROOT / f"{verb}.py"), *arguments]


def uses_console_script() -> bool:
    return not IS_CLONE or bool(os.environ.get(CONSOLE_SCRIPT))


def this_start() -> str:
    """The beginning of this process's command, without its arguments."""
    script = sys.argv[0]
    return f"vitlab {Path(script).stem}" if uses_console_script() else f"python {quote_for_shell(script)}"


def this_command() -> str:
    return join_command([*split_command(this_start()), *sys.argv[1:]])


def entry_point(verb: str, command: str, folder: Path) -> str:
    """The start of another command as you type it in `folder`: of the script next to that which `command` started from
    there."""
    program, script, *_ = split_command(command)
    if program == "vitlab":
        return f"vitlab {verb}"
    path = folder / Path(script).parent / f"{verb}.py"
    return f"python {quote_for_shell(str(path.relative_to(folder) if path.is_relative_to(folder) else path))}"


def as_typed(text: str) -> str:
    """A text that names commands as in a clone, with the commands of the console script if the user typed that."""
    return SCRIPT.sub(lambda found: f"vitlab {found[1] or found[2]}", text) if uses_console_script() else text
