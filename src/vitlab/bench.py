"""Measures speed: `python -m vitlab.bench name=finetuning`. All keys: `--help`."""

import sys

from vitlab.cli import run
from vitlab.config.compose import CONF, read_command


def main() -> None:
    command, overrides = read_command(CONF, "bench", sys.argv[1:])
    from vitlab.benchmarks import bench

    bench(command, overrides)


if __name__ == "__main__":
    run(main)
