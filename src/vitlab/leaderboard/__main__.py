"""Command line of the leaderboard: `python -m vitlab.leaderboard <folders>`."""

from vitlab.cli import run
from vitlab.leaderboard.leaderboard import main

if __name__ == "__main__":
    run(main)
