"""Writes a run's model for use without vitlab: `python -m vitlab.export run=latest`. All keys: `--help`."""

import sys

from vitlab.config.command import CONF, read_command
from vitlab.config.entry import run
from vitlab.config.importing import quick_imports


def main() -> None:
    command, overrides = read_command(CONF, "export", sys.argv[1:])
    with quick_imports():
        from vitlab.exporting import export

    export(command, overrides, CONF)


if __name__ == "__main__":
    run(main)
