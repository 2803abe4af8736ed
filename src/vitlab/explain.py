"""Draws what a ViT looks at: `python -m vitlab.explain run=latest images=photos/`. All keys: `--help`."""

import sys

from vitlab.config.command import CONF, read_command
from vitlab.config.entry import run
from vitlab.config.importing import quick_imports


def main() -> None:
    command, overrides = read_command(CONF, "explain", sys.argv[1:])
    with quick_imports():
        from vitlab.explaining import explain

    explain(command, overrides, CONF)


if __name__ == "__main__":
    run(main)
