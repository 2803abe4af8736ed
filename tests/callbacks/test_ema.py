"""The EMA weights, and which command uses which weights."""

import csv
import json
from functools import partial
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import SMALL_RUN, Command
from PIL import Image
from safetensors.torch import load_file
from test_classifier import batches, make, trainer
from torch import nn

from vitlab.callbacks import EMA
from vitlab.runs.checkpoint import network_weights, read_checkpoint

RUN = [*SMALL_RUN, "data.train_images=200", "callbacks=ema", "checkpoint.monitor=val/acc_ema", "callbacks.ema.warmup=3"]


class Linear(nn.Module):
    """Has an integer buffer, as tables of positions in some models."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 3)
        self.register_buffer("table", torch.arange(7))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.flatten(1))


class RecordWeights(pl.Callback):
    """Records the weights after each optimizer step."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step > len(self.seen):
            self.seen.append(pl_module.network.layer.weight.detach().clone())


def trained(*callbacks: pl.Callback, images: float = 1.0, **settings: Any) -> tuple[nn.Module, pl.Trainer]:
    torch.manual_seed(0)
    network, run = Linear(), trainer(callbacks=list(callbacks), limit_val_batches=1, **settings)
    loader: Any = batches([0, 1, 2, 0, 1, 2, 0, 1], [1] * 8)
    for batch in loader.dataset:
        batch.images.normal_().mul_(images)
    run.fit(make(network, optimizer=partial(torch.optim.SGD, lr=0.1)), loader, batches([0, 1, 2, 2], [4]))
    return network, run


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_average_follows_its_definition_and_does_not_change_the_run(accumulated: int) -> None:
    ema, record = EMA(decay=0.6, warmup=3), RecordWeights()
    network, run = trained(ema, record, accumulate_grad_batches=accumulated)
    alone, without = trained(accumulate_grad_batches=accumulated)
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), alone.state_dict().values(), strict=True)
    )
    assert run.callback_metrics["val/loss"] == without.callback_metrics["val/loss"]
    assert len(record.seen) == 8 / accumulated
    average = record.seen[0].double()
    for step, weight in enumerate(record.seen):
        kept = min(step / (3 + step), 0.6)
        average = kept * average + (1 - kept) * weight.double()
    found: Any = ema.average.module
    assert torch.allclose(found.layer.weight.double(), average, atol=1e-7)
    assert torch.equal(found.table, torch.arange(7))
    images, labels = torch.zeros(4, 3, 2, 2), torch.tensor([0, 1, 2, 2])
    loss = nn.functional.cross_entropy(found(images), labels)
    assert run.callback_metrics["val/loss_ema"].item() == pytest.approx(loss.item())
    assert run.callback_metrics["val/acc_ema"].item() == (found(images).argmax(1) == labels).float().mean()


def test_a_run_resumed_with_ema_starts_the_average_from_its_weights() -> None:
    network = Linear()
    ema, module = EMA(decay=0.9, warmup=9), make(network)
    ema.setup(SimpleNamespace(), module, "fit")  # type: ignore[arg-type]
    state = {f"network.{name}": tensor + 1 for name, tensor in network.state_dict().items()}
    ema.on_load_checkpoint(SimpleNamespace(), module, {"state_dict": state, "global_step": 7})  # type: ignore[arg-type]
    assert torch.equal(ema.average.module.layer.weight, network.layer.weight + 1)  # type: ignore[union-attr]
    assert ema.step == 7


def weights(run: Path, which: str) -> dict[str, torch.Tensor]:
    return network_weights(read_checkpoint(run / "checkpoints" / "best.ckpt"), which)


def test_every_command_takes_either_weights(in_process: Command, tmp_path: Path) -> None:
    result = in_process("train.py", *RUN, "hydra.run.dir=run", "callbacks.figures.level=light")
    assert result.returncode == 0, result.stderr
    assert "val, EMA weights" in result.stdout
    run = tmp_path / "run"
    final = json.loads((run / "metrics.json").read_text())
    assert final["test/loss"] != final["test/loss_ema"]
    for arguments, which in (([], "ema"), (["weights=raw"], "raw"), (["weights=ema", "split=val"], "ema")):
        result = in_process("evaluate.py", "run=run", *arguments)
        assert f"weights: {which} (weights=" in result.stdout, result.stderr
        split = "val" if "split=val" in arguments else "test"
        found = json.loads((run / f"evaluation_{split}.json").read_text())
        assert found["weights"] == which
        for metric in (f"{split}/loss", f"{split}/acc"):
            assert found[metric] == final[metric + ("_ema" if which == "ema" else "")]
    with next(run.glob("predictions_test_*.csv")).open() as table:  # the first of them
        confidence = mean(float(row["probability"]) for row in csv.DictReader(table))
    details = json.loads((run / "test_details.json").read_text())
    assert details["confidence"] == pytest.approx(confidence, abs=1e-6)  # the figures are of the average
    assert "val/loss_ema,val/acc_ema" in (run / "metrics.csv").read_text().splitlines()[0]
    report = (run / "report.html").read_text()
    assert f"{final['test/acc_ema']:.2%} test accuracy" in report
    assert "test, EMA weights" in report

    assert not torch.equal(weights(run, "raw")["head.weight"], weights(run, "ema")["head.weight"])
    exported = in_process("-m", "vitlab.export", "run=run", "weights=raw", "formats=[timm]")
    assert "weights: raw (weights=ema " in exported.stdout, exported.stderr
    file = load_file(run / "export" / "model.safetensors")
    assert torch.equal(file["head.weight"], weights(run, "raw")["head.weight"])
    new = [*RUN, "init_from=run", "init_weights=raw", "trainer.max_epochs=1", "optimizer.lr=1e-30"]
    begun = in_process("train.py", *new, "optimizer.weight_decay=0", "hydra.run.dir=new")
    assert "best.ckpt (its raw weights)" in begun.stdout, begun.stderr
    for found in ("raw", "ema"):
        head = weights(tmp_path / "new", found)["head.weight"]
        assert torch.allclose(head, weights(run, "raw")["head.weight"])
    Image.new("RGB", (40, 40), "green").save(tmp_path / "meadow.jpg")
    predicted = in_process("predict.py", "run=run", "images=meadow.jpg")
    assert "weights: ema (weights=raw " in predicted.stdout, predicted.stderr
