"""Evaluates a run: `python evaluate.py run=latest`. All keys: `python evaluate.py --help`."""

import sys
from pathlib import Path

from vitlab.cli import no_gc_imports, run
from vitlab.config.compose import read_command

CONF = Path(__file__).parent / "conf"


def main() -> None:
    command, overrides = read_command(CONF, "evaluate", sys.argv[1:])
    with no_gc_imports():
        from vitlab.evaluate import evaluate

    evaluate(command, overrides, CONF)


if __name__ == "__main__":
    run(main)
