"""`name=gpu`, rehearsed on a CPU."""

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from torch import nn

from vitlab.benchmarks import gpu, kernels, measurement, smoke
from vitlab.benchmarks.gpu import TINY, speed_variants
from vitlab.benchmarks.measurement import compose_config, run_process
from vitlab.benchmarks.record import Skipped
from vitlab.benchmarks.smoke import Smoke, check_gradients
from vitlab.config.instantiate import build_network
from vitlab.errors import UserError
from vitlab.models.execution import forward_flops

CPU = ["trainer.accelerator=cpu", "trainer.precision=32-true"]
SMALL = [*TINY, *CPU, "data=synthetic", "data.train_images=60", "data.val_size=10"]


def test_ratios_are_mfus_against_measured_matrix_products(tmp_path: Path) -> None:
    assert gpu.matrix_products(torch.float32, 64, 1) > 0
    variants = speed_variants(lambda steps: 2.0, SMALL, tmp_path / "log")
    assert list(variants) == [
        "matrix products alone",
        *("bare loop, eager", "train.py, eager", "bare loop, compiled", "train.py, compiled"),
    ]
    flops = forward_flops(build_network(compose_config([*TINY, *CPU]).model), torch.zeros(1, 3, 32, 32))
    assert variants["matrix products alone"](1) == pytest.approx(2e12 / (3 * flops))
    assert variants["bare loop, eager"](1) > 0


def test_each_case_is_compiled_with_its_own_batch_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[list[Any]] = []

    def backend(graph: Any, inputs: Any) -> Any:
        shapes.append([size for value in inputs for size in getattr(value, "shape", [value])])
        return graph

    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_module(module, backend=backend))
    for size in (4, 6):
        overrides = [*SMALL, f"data.batch_size={size}"]
        speed_variants(lambda steps: 1.0, overrides, tmp_path / "log")["bare loop, compiled"](1)
    assert len(shapes) == 2
    assert all(type(size) is int for sizes in shapes for size in sizes)  # a symbolic size would be a SymInt
    assert 6 in shapes[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kernel_runs(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ATTENTION", {"x": (2, 2, 9, 8)})
    monkeypatch.setattr(kernels, "PATCHES", {"x": (2, 8, 4, 16)})
    sections = dict(kernels.kernel_sections(dtype, [*TINY, *CPU]))
    assert len(sections) == 7
    for title, variants in sections.items():
        for name, run in variants.items():
            if name in ("cuDNN", "flash", "efficient", "compiled"):
                with pytest.raises(Skipped):
                    run(1)
            elif "augment" not in title or "basic" in title:
                assert run(1) > 0, (title, name)


def test_patches_by_a_product_are_those_of_the_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda out, *rest: (tokens.append(out), grad(out, *rest)))
    for kind in ("convolution", "matrix product"):
        torch.manual_seed(0)
        kernels._patches((2, 8, 4, 16), torch.float32, kind, 1)
    torch.testing.assert_close(tokens[0], tokens[-1])


def test_gradients_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [*TINY[:-1], *CPU]
    assert "relative difference" in check_gradients(overrides)
    monkeypatch.setattr(smoke, "GRADIENT_TOLERANCE", 1e-9)
    with pytest.raises(AssertionError, match="relative difference"):
        check_gradients(overrides)


def test_smoke_checks_fail_on_other_weights_and_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = Smoke(tmp_path, tmp_path / "log", time.monotonic() + 60, [])
    started: list[list[str]] = []

    def train(command: list[str], **options: Any) -> str:
        started.append(command)
        run = next((argument.partition("=")[2] for argument in command if argument.startswith("hydra.run.dir=")), None)
        if run is not None:
            folder = Path(run)
            (folder / "checkpoints").mkdir(parents=True)
            (folder / "metrics.csv").write_text(f"epoch,train/loss\n1,{2.0 if folder.name == 'cpu' else 2.1}\n")
            weights = {"a": torch.zeros(2), "b": torch.full((2,), float(folder.name in wrong))}
            torch.save({"state_dict": weights}, folder / "checkpoints" / "last.ckpt")
        return ""

    monkeypatch.setattr(smoke, "run_process", train)
    monkeypatch.setattr(smoke, "read_checkpoint", torch.load)
    wrong = ["stopped"]
    checks.check_seed()
    with pytest.raises(AssertionError, match="1 of 2 weights differ: b"):
        checks.check_resume()
    assert f"resume={tmp_path / 'stopped'}" in started[-1]
    with pytest.raises(AssertionError, match="loss"):
        checks.check_losses()
    with pytest.raises(Skipped):
        checks.train("16-mixed")
    with pytest.raises(Skipped):
        Smoke(tmp_path, tmp_path / "log", time.monotonic(), []).start("x.py")


PATIENT = """
import pathlib, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print('ready', flush=True)
pathlib.Path(sys.argv[1]).touch()
signal.pause()
"""


def test_processes_are_stopped_killed_and_logged(tmp_path: Path) -> None:
    log, ready = tmp_path / "log", tmp_path / "ready"
    python = partial(run_process, log=log)
    assert python([sys.executable, "-c", PATIENT, str(ready)], stop_at=ready, seconds=60) == "ready\n"
    with pytest.raises(TimeoutError, match="killed after"):
        python([sys.executable, "-c", PATIENT, str(ready)], seconds=0.01)
    with pytest.raises(UserError, match="status 3: the reason"):
        python([sys.executable, "-c", "import sys; print('the reason', file=sys.stderr); sys.exit(3)"])
    with pytest.raises(UserError, match="status 0"):  # it was to be stopped
        python([sys.executable, "-c", ""], stop_at=tmp_path / "never", seconds=60)
    assert log.read_text().count("$ ") == 4
    assert "the reason" in log.read_text()


@pytest.mark.parametrize(("left", "limit"), [(400, "00:00:03:00"), (135, "00:00:00:5")])
def test_the_recipe_trains_as_long_as_there_is_time(
    left: int, limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(measurement, "run_process", lambda command, log: commands.append(command))
    gpu.train_recipe(time.monotonic() + left, ["data=synthetic"], 180, tmp_path / "log")
    assert any(argument.startswith(f"trainer.max_time={limit}") for argument in commands[0])
    with pytest.raises(Skipped):
        gpu.train_recipe(time.monotonic() + 20, [], 180, tmp_path / "log")


def test_parts_share_the_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(gpu.SECONDS) == {"smoke", "kernels", "speed"}
    around = gpu.RECIPE_TRAINS + gpu.RECIPE_AROUND
    assert sum(gpu.SECONDS.values()) + around < 60 * gpu.MINUTES


@pytest.mark.slow  # starts thirty processes: ten minutes on two cores
def test_the_whole_command_is_rehearsed_on_a_cpu(command: Command, tmp_path: Path) -> None:
    arguments = ["name=gpu", "tiny=true", "minutes=90", "steps=2", "out=x.json"]
    result = command("-m", "vitlab.bench", *arguments, timeout=5400)
    assert result.returncode == 0, result.stdout
    content = json.loads((tmp_path / "x.json").read_text())
    statuses = {name: status for section in content["statuses"].values() for name, status in section.items()}
    skipped = {name for name, status in statuses.items() if not status.startswith("passed")}
    assert skipped == {"train, 16-mixed", "cuDNN", "flash", "efficient", "compiled"}
    assert len(content["figures"]) == 13
    assert len(statuses) == 20
