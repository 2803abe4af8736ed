"""Measure speed, variants side by side: `python -m vitlab.bench name=step`."""

import sys
from collections.abc import Mapping, Sequence
from statistics import median

from omegaconf import OmegaConf
from rich.table import Table

from vitlab.arguments.command import read_command
from vitlab.cli import run
from vitlab.errors import UserError
from vitlab.files import new_file, shorten, write_json
from vitlab.runs.console import show

# Function in vitlab.benchmarks.variants, which imports torch; default of `steps`; overrides of the training config.
BENCHMARKS: dict[str, tuple[str, int, list[str]]] = {
    "finetuning": ("finetuning_sections", 1, ["model=vit_pretrained", "model.pretrained=false", "data.batch_size=32"]),
    "gpu": ("gpu_sections", 20, []),
    "input": ("input_sections", 40, []),
    "start": ("start_sections", 1, []),
    "step": ("step_sections", 10, []),
}


def main() -> None:
    """Run one benchmark, print its tables and save the figures of all rounds as JSON."""
    command, overrides = read_command("bench", sys.argv[1:])
    if command.name not in BENCHMARKS:
        raise UserError(f"name={command.name} is unknown; choose one of {', '.join(BENCHMARKS)}")
    function, default_steps, own_overrides = BENCHMARKS[command.name]
    steps = default_steps if command.steps is None else command.steps
    if command.rounds < 1 or steps < 1:
        raise UserError(f"rounds={command.rounds} and steps={steps} must be at least 1")
    file = new_file(command.out, f"outputs/bench/{command.name}_{{time}}.json")

    # These import torch, which the checks above and --help do not need.
    import torch

    from vitlab.benchmarks import variants
    from vitlab.benchmarks.measurement import Setup, compose_config, measure
    from vitlab.compat import keep_freed_memory, silence_libraries
    from vitlab.runs.manifest import describe_origin

    if command.name == "gpu" and not torch.cuda.is_available():
        raise UserError("name=gpu needs a CUDA GPU; name=step also runs on a CPU")
    silence_libraries()
    keep_freed_memory()
    given = [*own_overrides, *(str(override.input_line) for override in overrides)]
    config = compose_config(given)
    sections = getattr(variants, function)(Setup(config, given, command))
    figures = {title: measure(section, command.rounds, steps) for title, section in sections.items()}

    resolved = {group: OmegaConf.to_container(config[group], resolve=True) for group in ("model", "data")}
    write_json(file, {**describe_origin(), **resolved, "figures": figures})
    for title, section in figures.items():
        _print_table(title, section)
    show(f"written: {shorten(file)}")


def _print_table(title: str, section: Mapping[str, Sequence[float]]) -> None:
    table = Table("variant", title=title, title_justify="left")
    for column in ("median", "lowest", "highest", "ratio"):
        table.add_column(column, justify="right")
    reference = median(next(iter(section.values())))
    for variant, values in section.items():
        figures = (median(values), min(values), max(values))
        cells = [f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in figures]
        table.add_row(variant, *cells, f"{median(values) / reference:.2f}")
    show(table)


if __name__ == "__main__":
    run(main)
