"""Graphs that torch.compile makes, counted with a backend that only counts."""

import csv
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL_RUN

from vitlab.config.compose import compose_training
from vitlab.experiment import train
from vitlab.resume import MEASURED

TINY_RUN = [*SMALL_RUN, "trainer=cpu", "trainer.precision=32-true", "preflight=off", "callbacks.progress=null"]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The mode of each graph, in the order in which they are made."""
    made: list[str] = []

    def count(graph: Any, inputs: Any) -> Any:
        made.append("train" if torch.is_grad_enabled() else "eval")
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
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
        pytest.param(["model.drop_path=0.1", "data.eval_batch_size=64"], id="drop_path, equal batches"),
        pytest.param(["model=vit_hybrid", "model.patch_size=8", "data.test_images=51"], id="hybrid, a last image"),
    ],
)
def test_a_run_compiles_a_graph_for_evaluation_and_then_one_for_training(
    overrides: list[str], graphs: list[str], tmp_path: Path
) -> None:
    run(tmp_path, "compile=true", "trainer.max_time=00:01:00:00", *overrides)
    assert graphs == ["eval", "train"]  # the clock starts after the first training step


def test_the_batch_that_compiles_the_graph_for_evaluation_changes_no_result(tmp_path: Path) -> None:
    options = ["callbacks=ema", "model.dropout=0.1"]
    with_batch, without = (run(tmp_path / n, *options, f"trainer.num_sanity_val_steps={n}") for n in "10")
    assert with_batch == without
