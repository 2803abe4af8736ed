"""Trains a model: `python train.py model=vit_scratch`. All choices: `python train.py --help`."""

import hydra
from omegaconf import DictConfig

from vitlab.cli import job, launch, no_gc_imports


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@job
def main(config: DictConfig) -> None:
    with no_gc_imports():
        from vitlab.experiment import train

    train(config)


if __name__ == "__main__":
    launch(main)
