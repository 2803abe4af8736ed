"""Trains a model: `python train.py model=vit_scratch`. All choices: `python train.py --help`."""

from vitlab.cli import launch

if __name__ == "__main__":
    launch()
