"""Evaluate a run: `python evaluate.py run=latest`. All keys: `python evaluate.py --help`."""

from vitlab.cli import run
from vitlab.evaluate import main

if __name__ == "__main__":
    run(main)
