"""Says what is on pictures: `python predict.py run=latest images=photos/`. All keys: `python predict.py --help`."""

import sys
from pathlib import Path

from vitlab.cli import no_gc_imports, run
from vitlab.config.compose import read_command

CONF = Path(__file__).parent / "conf"


def main() -> None:
    command, overrides = read_command(CONF, "predict", sys.argv[1:])
    with no_gc_imports():
        from vitlab.predict import predict

    predict(command, overrides, CONF)


if __name__ == "__main__":
    run(main)
