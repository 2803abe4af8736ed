"""Benchmarks: variants of the same work, in turn, inside one run."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from vitlab.benchmarks.attention import attention_kernels
from vitlab.benchmarks.finetuning import finetuning
from vitlab.benchmarks.gpu import gpu_speeds
from vitlab.benchmarks.input import input_paths
from vitlab.benchmarks.loops import composed
from vitlab.benchmarks.start import start_times
from vitlab.benchmarks.step import step_speeds
from vitlab.benchmarks.tricks import tricks
from vitlab.benchmarks.variant import Sections, Variant, Work
from vitlab.compat import silence_libraries
from vitlab.errors import UserError
from vitlab.files import new_file, shorten, write_json
from vitlab.memory import keep_freed_memory
from vitlab.runs.manifest import describe_origin


@dataclass(frozen=True)
class Benchmark:
    """What is measured.

    Attributes:
        sections: Makes its variants. The first of a section is what its others are compared with.
        overrides: Of the training config.
        steps: Timed steps of a variant in a round, where the command does not say.
        pause: Seconds before a variant's turn: another one's workers fill their queues.
    """

    sections: Callable[[Work], Sections]
    overrides: tuple[str, ...]
    steps: int
    pause: float = 0.0


BENCHMARKS = {
    "attention": Benchmark(attention_kernels, (), 2),
    "finetuning": Benchmark(finetuning, ("model=vit_pretrained", "model.pretrained=false", "data.batch_size=32"), 1),
    "gpu": Benchmark(gpu_speeds, (), 20),
    "input": Benchmark(input_paths, (), 40, pause=2.0),
    "start": Benchmark(start_times, (), 1),
    "step": Benchmark(step_speeds, (), 10),
    "tricks": Benchmark(tricks, (), 10),
}


def bench(command: DictConfig, overrides: Sequence[Override]) -> dict[str, Any]:
    """Prints each variant's figure, the median over the rounds, and writes all of them as JSON.

    Args:
        command: The values of `conf/bench.yaml`.
        overrides: Of the training config.

    Raises:
        UserError: there is no such benchmark.
    """
    silence_libraries()
    keep_freed_memory()
    if command.name not in BENCHMARKS:
        raise UserError(f"name={command.name} is unknown; choose of {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[command.name]
    steps = benchmark.steps if command.steps is None else command.steps
    if command.rounds < 1 or steps < 1:
        raise UserError(f"rounds={command.rounds} and steps={steps} must be at least 1")
    file = new_file(command.out, f"outputs/bench/{command.name}_{{time}}.json")
    typed = [str(override.input_line) for override in overrides]
    config = composed([*benchmark.overrides, *typed])
    sections = benchmark.sections(Work(config, [*benchmark.overrides, *typed], command))
    figures = {title: measure(variants, command.rounds, steps, benchmark.pause) for title, variants in sections.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    resolved = {group: OmegaConf.to_container(config[group], resolve=True) for group in ("model", "data")}
    result = {**describe_origin(), **resolved, "figures": figures}
    write_json(file, result)
    for title, section in figures.items():
        _print(title, section)
    Console(soft_wrap=True, highlight=False).print(f"written: {shorten(file)}", markup=False)
    return result


def measure(variants: Mapping[str, Variant], rounds: int, steps: int, pause: float = 0.0) -> dict[str, list[float]]:
    """Each variant's figure in each round; all take turns."""
    figures: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            time.sleep(pause)
            figures[name].append(run(steps))
    return figures


def _print(title: str, section: Mapping[str, Sequence[float]]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("variant", no_wrap=True)
    for column in ("median", "lowest", "highest", "ratio"):
        table.add_column(column, justify="right")
    base = median(next(iter(section.values())))
    for variant, values in section.items():
        figures = (median(values), min(values), max(values))
        table.add_row(
            variant,
            *(f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in figures),
            f"{median(values) / base:.2f}",
        )
    Console(soft_wrap=True).print(table)
