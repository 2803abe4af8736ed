"""Benchmarks: variants of the same work, in turn, inside one run."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from vitlab.benchmarks.finetuning import finetuning
from vitlab.config.quiet import quiet_libraries
from vitlab.errors import UserError
from vitlab.files import write_json
from vitlab.report import shorten
from vitlab.runs.manifest import describe_origin

# Each takes a training config and gives variants: called with a number of steps, one trains so many and says how many
# images that were. The first is what the others are compared with.
BENCHMARKS: dict[str, Callable[[DictConfig], dict[str, Callable[[int], int]]]] = {"finetuning": finetuning}
OVERRIDES = {"finetuning": ["model=vit_pretrained", "model.pretrained=false", "data.batch_size=32"]}


def bench(command: DictConfig, overrides: Sequence[Override], conf: Path) -> dict[str, Any]:
    """Prints images a second of each variant, the median over the rounds, and writes all figures as JSON.

    Args:
        command: The values of `conf/bench.yaml`.
        overrides: Of the training config.
        conf: The folder of YAML files.

    Raises:
        UserError: there is no such benchmark.
    """
    quiet_libraries()
    if command.name not in BENCHMARKS:
        raise UserError(f"name={command.name} is unknown; choose of {', '.join(BENCHMARKS)}")
    if command.rounds < 1 or command.steps < 1:
        raise UserError(f"rounds={command.rounds} and steps={command.steps} must be at least 1")
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    file = Path(command.out or f"outputs/bench/{command.name}_{stamp}.json")
    if file.exists():
        raise UserError(f"out={file} is there already: nothing is overwritten")
    typed = [str(override.input_line) for override in overrides]
    with initialize_config_dir(str(conf), version_base="1.3"):
        config = compose("train", [*OVERRIDES[command.name], "name=bench", "run_dir=outputs", *typed])
    speeds = measure(BENCHMARKS[command.name](config), command.rounds, command.steps)
    file.parent.mkdir(parents=True, exist_ok=True)
    resolved = {group: OmegaConf.to_container(config[group], resolve=True) for group in ("model", "data")}
    result = {**describe_origin(), **resolved, "images_per_second": speeds}
    write_json(file, result)
    _print(command.name, speeds)
    Console(soft_wrap=True, highlight=False).print(f"written: {shorten(file)}", markup=False)
    return result


def measure(variants: Mapping[str, Callable[[int], int]], rounds: int, steps: int) -> dict[str, list[float]]:
    """Images a second of each variant in each round; all take turns, after one step each that is not timed."""
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run(1)
    for _ in range(rounds):
        for name, run in variants.items():
            started = time.perf_counter()
            images = run(steps)
            speeds[name].append(images / (time.perf_counter() - started))
    return speeds


def _print(name: str, speeds: Mapping[str, Sequence[float]]) -> None:
    table = Table(title=name, title_justify="left")
    table.add_column("variant", no_wrap=True)
    for column in ("images/s, median", "lowest", "highest", "ratio"):
        table.add_column(column, justify="right")
    base = median(next(iter(speeds.values())))
    for variant, values in speeds.items():
        figures = (median(values), min(values), max(values))
        table.add_row(variant, *(f"{value:,.2f}" for value in figures), f"{median(values) / base:.2f}")
    Console(soft_wrap=True).print(table)
