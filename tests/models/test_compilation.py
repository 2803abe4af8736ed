"""Graphs that torch.compile makes, counted with a backend that only counts."""

import csv
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import SMALL_RUN
from models.test_vision_transformer import make
from torch import Tensor
from torchvision.ops import StochasticDepth

from vitlab.config.compose import compose_training
from vitlab.config.instantiate import build_network
from vitlab.errors import UserError
from vitlab.experiment import train
from vitlab.models import timm_model
from vitlab.models.execution import compile_network, pays_to_compile
from vitlab.models.vision_transformer import DropPath
from vitlab.resume import MEASURED
from vitlab.runs.directory import RunDirectory

SHORT = ["trainer.limit_train_batches=2", "callbacks.progress=null"]
TINY_RUN = [*SMALL_RUN, "trainer=cpu", "trainer.precision=32-true", *SHORT]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The mode of each graph, in the order in which they are made."""
    made: list[str] = []

    def count(graph: Any, inputs: Any) -> Any:
        made.append("train" if torch.is_grad_enabled() else "eval")
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
    monkeypatch.setattr("vitlab.models.execution.has_compiler", lambda: True)  # that backend needs none
    yield made
    torch.compiler.reset()


def run(folder: Path, *overrides: str) -> list[dict[str, str]]:
    """Train and test; the rows of metrics.csv without times."""
    train(compose_training([*TINY_RUN, "name=small", f"run_dir={folder}", *overrides]), [])
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in rows]


# 40 images to validate and 103 to test, in batches of 50 unless stated otherwise, and of 64 to train.
@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param([], id="vit"),
        pytest.param(["compile=blocks", "model.drop_path=0.1", "model.depth=3"], id="blocks"),
        pytest.param(["model.drop_path=0.1", "data.eval_batch_size=64"], id="drop_path, equal batches"),
        pytest.param(["model=vit_hybrid", "model.patch_size=8", "data.test_images=51"], id="hybrid, a last image"),
    ],
)
def test_a_run_compiles_a_graph_for_evaluation_and_then_one_for_training(
    overrides: list[str], graphs: list[str], tmp_path: Path
) -> None:
    run(tmp_path, "compile=true", "trainer.max_time=00:01:00:00", *overrides)
    assert graphs == ["eval", "train"]  # the clock starts after the first training step


def test_on_a_cpu_nothing_is_compiled_unless_asked_for(graphs: list[str], tmp_path: Path) -> None:
    run(tmp_path, "trainer.max_time=00:01:00:00")
    assert graphs == []
    assert RunDirectory(tmp_path).config().compile is False


@pytest.mark.parametrize(
    ("overrides", "budget", "expected"),
    [
        ([], math.inf, False),  # 30 epochs of 351 steps take 84 s to launch
        (["trainer.max_epochs=300"], math.inf, True),
        (["trainer.max_epochs=300"], 200, False),
        (["trainer.max_epochs=300", "trainer.limit_train_batches=2"], math.inf, False),
        (["trainer.max_epochs=-1", "trainer.max_steps=1000"], math.inf, False),
        (["trainer.max_epochs=-1"], 600, True),
        (["model.embed_dim=1920", "data.image_size=64", "trainer.max_epochs=50"], math.inf, True),  # by its FLOPs
    ],
)
def test_on_a_gpu_long_runs_are_compiled(
    overrides: list[str], budget: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose_training(["data.num_classes=10", "model.depth=1", *overrides])
    network = build_network(config.model)
    assert not pays_to_compile(config, network, 45_000, budget)
    monkeypatch.setattr("vitlab.models.execution.has_cuda", lambda accelerator: True)
    monkeypatch.setattr("vitlab.models.execution.compile_fault", lambda accelerator: "")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert pays_to_compile(config, network, 45_000, budget) == expected


# Blocks of the same graph: all; all but the last, which computes one token; and timm's also but for the first.
NETWORKS = {
    "pool=mean": (partial(make, depth=3, drop_path=0.2), 1),
    "pool=cls": (partial(make, depth=3, drop_path=0.2, pool="cls"), 2),
    "timm": (partial(timm_model, "test_vit", num_classes=10, image_size=32, drop_path=0.2, kwargs={"depth": 4}), 3),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_that_differ_in_drop_path_share_a_graph(name: str, graphs: list[str]) -> None:
    build, count = NETWORKS[name]
    network = build().train()
    compile_network(network, "blocks")
    for size in (64, 64):
        network(torch.randn(size, 3, 32, 32)).sum().backward()
    with torch.no_grad():
        network.eval()
        for size in (40, 17, 1):
            network(torch.randn(size, 3, 32, 32))
    assert graphs == ["train"] * count + ["eval"] * count


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="compile=blocks"):
        compile_network(torch.nn.Linear(2, 2), "blocks")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.0, 0.1, 1 / 3])
def test_drop_path_equals_torchvision_and_timm_compiled_or_not(
    p: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, uniform = torch.randn(64, 3, 5).to(dtype), torch.rand(64, 1, 1)
    ours, others = DropPath(p), [StochasticDepth(p, "row"), timm.layers.DropPath(p)]
    results = []
    for module in (ours, *others):
        torch.manual_seed(0)
        results.append(module(x))
    assert all(torch.equal(result, results[0]) for result in results)
    # The same uniform numbers for the operations of either path.
    monkeypatch.setattr(Tensor, "bernoulli_", lambda noise, keep: noise.copy_(uniform < keep))
    monkeypatch.setattr(torch, "rand", lambda *shape, device: uniform)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert all(torch.equal(module(x), ours(x)) for module in others)
    assert torch.equal(ours.eval()(x), x)


def test_the_batch_that_compiles_the_graph_for_evaluation_changes_no_result(tmp_path: Path) -> None:
    options = ["callbacks=ema", "model.dropout=0.1"]
    with_batch, without = (run(tmp_path / n, *options, f"trainer.num_sanity_val_steps={n}") for n in "10")
    assert with_batch == without
