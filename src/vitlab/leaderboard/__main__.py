"""Command line of the leaderboard: `python -m vitlab.leaderboard <folders>`."""

import sys
from pathlib import Path

from vitlab.arguments.command import read_command
from vitlab.cli import run
from vitlab.config.types import whole
from vitlab.errors import UserError, did_you_mean


def main() -> None:
    folders = [a for a in sys.argv[1:] if not a.startswith("-") and ("=" not in a or Path(a).is_dir())]
    command, others = read_command("leaderboard", [a for a in sys.argv[1:] if a not in folders])
    if others:
        key = others[0].key_or_group
        raise UserError(f"unknown key '{key}'{did_you_mean(key, set(map(str, command)))}")
    if not whole(1).fits(command.top):
        raise UserError(f"top={command.top} must be {whole(1).words}")
    if not folders:
        raise UserError("name one or more directories with runs: python -m vitlab.leaderboard outputs/sweeps/<time>")
    from vitlab.leaderboard.leaderboard import make_leaderboard  # takes seconds

    out = command.out and Path(command.out)
    make_leaderboard(
        [Path(folder) for folder in folders], out, metric=command.metric, tags=command.tags, top=command.top
    )


if __name__ == "__main__":
    run(main)
