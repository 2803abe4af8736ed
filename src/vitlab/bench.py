"""Measure speed, variants side by side: `python -m vitlab.bench name=step`."""

import sys
import time
from pathlib import Path

from omegaconf import OmegaConf

from vitlab.arguments.command import read_command
from vitlab.cli import run
from vitlab.errors import UserError
from vitlab.files import new_file, shorten
from vitlab.runs.console import terminal

# Function in vitlab.benchmarks.variants, which imports torch; default of `steps`; overrides of the training config.
BENCHMARKS: dict[str, tuple[str, int, list[str]]] = {
    "finetuning": ("finetuning_sections", 1, ["model=vit_pretrained", "model.pretrained=false", "data.batch_size=32"]),
    "gpu": ("", 20, []),  # in vitlab.benchmarks.gpu
    "input": ("input_sections", 40, []),
    "start": ("start_sections", 1, []),
    "step": ("step_sections", 10, []),
}
PARTS = ("smoke", "kernels", "speed", "recipe")  # of name=gpu


def main() -> None:
    """Run one benchmark; print and save each figure as soon as it is measured."""
    started = time.monotonic()
    command, overrides = read_command("bench", sys.argv[1:])
    if command.name not in BENCHMARKS:
        raise UserError(f"name={command.name} is unknown; choose one of {', '.join(BENCHMARKS)}")
    function, default_steps, own_overrides = BENCHMARKS[command.name]
    command.steps = default_steps if command.steps is None else command.steps
    if command.rounds is None:
        command.rounds = 1 if command.name == "gpu" else 3
    if command.rounds < 1 or command.steps < 1:
        raise UserError(f"rounds={command.rounds} and steps={command.steps} must be at least 1")
    if unknown := set(command.parts) - set(PARTS):
        raise UserError(f"parts={sorted(unknown)}: choose of {', '.join(PARTS)}")
    file = new_file(command.out, f"outputs/bench/{command.name}_{{time}}.json")

    # These import torch, which the checks above and --help do not need.
    import torch

    from vitlab.benchmarks import variants
    from vitlab.benchmarks.gpu import measure_gpu
    from vitlab.benchmarks.measurement import Setup, compose_config
    from vitlab.benchmarks.record import Record
    from vitlab.compat import silence_libraries
    from vitlab.runs.manifest import describe_origin
    from vitlab.system import WINDOWS, keep_freed_memory

    if command.name == "gpu" and not (torch.cuda.is_available() or command.tiny):
        raise UserError("name=gpu needs a CUDA GPU; tiny=true rehearses it on a CPU, and name=step measures there")
    if command.name == "gpu" and WINDOWS:
        raise UserError("name=gpu needs signals that Windows does not have: run it on Linux")
    silence_libraries()
    keep_freed_memory()
    given = [*own_overrides, *(str(override.input_line) for override in overrides)]
    config = compose_config(given)
    resolved = {group: OmegaConf.to_container(config[group], resolve=True) for group in ("model", "data")}
    origin, driver = describe_origin(), Path("/proc/driver/nvidia/version")
    origin["versions"] |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}  # type: ignore[no-untyped-call]
    origin["hardware"]["driver"] = driver.read_text(encoding="utf-8").partition("\n")[0] if driver.exists() else None
    record = Record(file, {**origin, **resolved})
    setup = Setup(config, given, command, record.log)
    console = terminal()
    console.print(origin["versions"], origin["hardware"])
    if command.name == "gpu":
        measure_gpu(setup, record, started)
    else:
        for title, section in getattr(variants, function)(setup).items():
            record.measure(title, section, command.rounds, command.steps)
    record.print_tables(console)
    console.print(f"written: {shorten(file)}")
    if record.failures():
        console.print(f"failed: {record.failures()}; see {shorten(record.log)}")
        sys.exit(1)


if __name__ == "__main__":
    run(main)
