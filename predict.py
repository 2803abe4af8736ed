"""Classify images: `python predict.py run=latest images=photos/`. All keys: `python predict.py --help`."""

from vitlab.cli import run
from vitlab.predict import main

if __name__ == "__main__":
    run(main)
