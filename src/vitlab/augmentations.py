"""Draws every augmentation: `python -m vitlab.augmentations augment=randaugment`. All keys: `--help`."""

import sys

from vitlab.config.command import CONF, read_command
from vitlab.config.entry import run


def main() -> None:
    command, overrides = read_command(CONF, "augmentations", sys.argv[1:])
    from vitlab.augmentation_sheet import draw_augmentations

    draw_augmentations(command, overrides, CONF)


if __name__ == "__main__":
    run(main)
