"""Puts runs of experiments on record and into the README: `python -m vitlab.results outputs/sweeps/<time>`. All
keys: `--help`."""

import sys
from pathlib import Path

from vitlab.cli import run
from vitlab.config.compose import CONF, read_command
from vitlab.errors import UserError, did_you_mean
from vitlab.files import shorten


def main() -> None:
    folders = [argument for argument in sys.argv[1:] if "=" not in argument and not argument.startswith("-")]
    command, others = read_command(CONF, "results", [a for a in sys.argv[1:] if a not in folders])
    for other in others:
        key = other.key_or_group
        raise UserError(f"unknown key '{key}'{did_you_mean(key, set(map(str, command)))}")
    readme = Path(command.readme)
    if not readme.is_file():
        raise UserError(f"readme={readme} does not exist")
    from vitlab.claims.publish import publish

    for file in publish([Path(folder) for folder in folders], command.data, CONF, readme):
        print(f"written: {shorten(file)}")


if __name__ == "__main__":
    run(main)
