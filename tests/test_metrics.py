"""Test the table of metrics: values, where they appear, what they select."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL_RUN, Command
from torchmetrics.functional.classification import multiclass_auroc, multiclass_calibration_error, multiclass_f1_score

from vitlab.config.ranges import SETTINGS
from vitlab.config.types import LIST
from vitlab.errors import UserError
from vitlab.metrics import CHOICES, METRICS, MetricKind, format_metric, logged_metrics, metric_kind, mode_of
from vitlab.metrics.evaluation import EvaluationMetrics

TINY = [*SMALL_RUN, "data.train_images=120", "data.test_images=40", "trainer.max_epochs=1", "preflight=off"]
OWN = "metrics=[{mine:{_target_:torchmetrics.classification.MulticlassHammingDistance,num_classes:10}}]"
NAMES = [name for name in CHOICES if name != "loss"]


def measure(names: list[Any], logits: torch.Tensor, labels: torch.Tensor, classes: int) -> dict[str, float]:
    metrics = EvaluationMetrics(names, classes)
    for part in (slice(0, 7), slice(7, None)):  # batches of unequal size
        metrics.update(torch.tensor(1.0), logits[part], labels[part])
    return {name: value.item() for name, value in metrics.compute().items()}


def test_metrics_of_batches_are_those_of_all_images() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.rand(40, 8, generator=draw), torch.arange(40) % 8  # logits that could be probabilities
    found = measure(NAMES, logits, labels, 8)
    assert set(found) == {"loss", *NAMES}
    assert found["acc"] == pytest.approx((logits.argmax(1) == labels).float().mean())
    top = logits.topk(5).indices == labels[:, None]
    assert found["top5"] == pytest.approx(top.any(1).float().mean())
    assert found["f1"] == pytest.approx(multiclass_f1_score(logits, labels, 8, average="macro").item())
    assert found["balanced_acc"] == found["recall"] == pytest.approx(found["acc"])  # as many images of each class
    softmax = logits.softmax(1)
    assert found["auroc"] == pytest.approx(multiclass_auroc(softmax, labels, 8).item())
    assert found["ece"] == pytest.approx(multiclass_calibration_error(softmax, labels, 8, n_bins=15).item())
    again = EvaluationMetrics(NAMES, 8)
    again.update(torch.tensor(1.0), logits, labels)
    first, second = again.compute(), again  # what was computed is forgotten
    second.update(torch.tensor(0.0), logits[:1], labels[:1])
    assert second.compute()["loss"] == 0 < first["loss"]


def test_only_classes_with_images_count_in_means_of_recall_and_auroc() -> None:
    labels = torch.tensor([0, 0, 0, 1] * 5)
    logits = torch.rand(20, 4, generator=torch.Generator().manual_seed(0))
    found = measure(["balanced_acc", "recall", "auroc"], logits, labels, 4)
    answers, scores = logits.argmax(1), logits.softmax(1)
    assert set(answers.tolist()) > {0, 1}  # also classes without images
    recalls = [(answers[labels == label] == label).float().mean().item() for label in (0, 1)]
    assert found["balanced_acc"] == found["recall"] == pytest.approx(sum(recalls) / 2)
    areas = []
    for label in (0, 1):
        inside, outside = scores[labels == label, label], scores[labels != label, label]
        areas.append((inside[:, None] > outside).float().mean().item())  # Mann and Whitney 1947
    assert found["auroc"] == pytest.approx(sum(areas) / 2)


def test_top5_of_few_classes_is_left_out() -> None:
    logits, labels = torch.eye(5), torch.arange(5)
    assert "top5" not in measure(["top5"], logits, labels, 5)
    assert "top5" in measure(["top5"], torch.eye(6), torch.arange(6), 6)


def test_every_metric_has_a_direction_for_each_of_its_weights() -> None:
    known = logged_metrics(NAMES)
    assert {f"val/{name}{suffix}" for name in CHOICES for suffix in ("", "_ema")} <= set(known)
    assert all(mode_of(key) == mode for key, mode in known.items())
    assert (mode_of("val/ece_ema"), mode_of("test/f1_flip"), mode_of("mine", "min")) == ("min", "max", "min")
    with pytest.raises(UserError, match="mine"):
        mode_of("mine")
    assert metric_kind("val/mine") is None
    assert format_metric("val/f1", {"val/f1": 0.5}) == "50.00%"
    assert format_metric("val/mine", {"val/mine": 0.5}) == "0.5000"


def test_one_entry_in_the_table_is_all_a_metric_takes(
    in_process: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kappa = MetricKind("Cohen's kappa", "torchmetrics.classification.MulticlassCohenKappa", unit="")
    monkeypatch.setitem(METRICS, "kappa", kappa)  # type: ignore[arg-type]
    monkeypatch.setitem(SETTINGS, "metrics", LIST)  # type: ignore[arg-type]  # it read the table when it was imported
    own = "{mine:{_target_:torchmetrics.classification.MulticlassHammingDistance,num_classes:'${data.num_classes}'}}"
    chosen = [f"metrics=[kappa,{own}]", "checkpoint.monitor=val/kappa", "callbacks=ema", "hydra.run.dir=runs/a"]
    stop = "+callbacks.stop={_target_:pytorch_lightning.callbacks.EarlyStopping,monitor:val/kappa,mode:max}"
    result = in_process("train.py", *TINY, *chosen, stop, "callbacks.figures.level=light")
    assert result.returncode == 0, result.stderr
    run = tmp_path / "runs" / "a"
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert {"val/kappa", "val/kappa_ema", "val/mine", "val/mine_ema"} <= set(rows[0])
    final = json.loads((run / "metrics.json").read_text())
    assert {"val/kappa", "test/kappa", "test/kappa_ema", "test/mine"} <= set(final)
    assert "best by val/kappa" in result.stdout
    assert "Cohen's kappa: val" in result.stdout
    assert " kappa " in result.stdout  # a column of the lines of the epochs
    assert "Cohen&#39;s kappa" in (run / "report.html").read_text()
    assert in_process("evaluate.py", "run=runs/a", "tta=flip").returncode == 0
    evaluated = json.loads((run / "evaluation_test.json").read_text())
    assert {"test/kappa", "test/kappa_flip", "test/mine"} <= set(evaluated)
    assert in_process("-m", "vitlab.leaderboard", "runs").returncode == 0
    heads = (run.parent / "leaderboard.csv").read_text().splitlines()[0]
    assert "val/kappa mean" in heads
    assert "test/kappa mean" in heads
    assert in_process("-m", "vitlab.leaderboard", "runs", "metric=val/loss").returncode == 0
    assert in_process("-m", "vitlab.leaderboard", "runs", "metric=val/auroc").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["metrics=[f2]"], "f1"),
        (["checkpoint.monitor=val/top5", "data.classes=[cat,dog]"], "needs 6 classes"),
        (["metrics=[acc]", "checkpoint.monitor=val/f1"], "metrics=[acc,f1]"),
        (["checkpoint.monitor=val/f1_ema"], "callbacks=ema"),
        (["checkpoint.monitor=val/knn_acc"], "take val/acc"),
        (["checkpoint.monitor=val/f1_flip", "+checkpoint.mode=max"], "take val/acc"),
        ([OWN, "checkpoint.monitor=val/f1"], "add metrics=[...,f1]"),
        ([OWN, "checkpoint.monitor=val/acc_ema"], "callbacks=ema"),
        ([OWN, "checkpoint.monitor=val/mine"], "direction of val/mine"),
        ([OWN, "checkpoint.monitor=val/mine_ema", "+checkpoint.mode=max"], "callbacks=ema"),
        ([OWN, "checkpoint.monitor=val/mien"], "'val/mine'"),
        (["checkpoint.monitor=val/f1", "+checkpoint.mode=min"], "mode=max"),
        (["metrics=[{kappa:{_target_:torchmetrics.classification.Nothing}}]"], "Nothing"),
        (["metrics=[{acc:{_target_:torchmetrics.classification.MulticlassAccuracy}}]"], "a name of its own"),
        (["loss.class_weights=heavy"], "balanced"),
        (["loss.class_weights=[1,2]"], "give 10"),
        (["loss.class_weights=balanced", "data.sampling=balanced"], "take one of both"),
    ],
)
def test_a_wrong_metric_or_loss_is_refused_with_what_would_work(
    arguments: list[str], named: str, in_process: Command
) -> None:
    result = in_process("train.py", *arguments)
    assert result.returncode == 2
    assert named in result.stderr


def test_training_images_are_evaluated_and_each_split_has_its_files(small_run: Path, in_process: Command) -> None:
    for split, images in (("train", 360), ("val", 40), ("test", 103)):
        assert in_process("evaluate.py", f"run={small_run}", f"split={split}").returncode == 0
        found = json.loads((small_run / f"evaluation_{split}.json").read_text())
        assert found["images"] == images
        heads, *rows = csv.reader((small_run / f"confusion_{split}.csv").open())
        counts = torch.tensor([[int(cell) for cell in row[1:]] for row in rows])
        assert heads[1:] == [row[0] for row in rows] == list(found["per_class"])
        assert counts.sum() == images
        assert counts.diag().sum() / images == pytest.approx(found[f"{split}/acc"], abs=1e-6)
        for row, column, figures in zip(counts, counts.T, found["per_class"].values(), strict=True):
            assert figures["images"] == row.sum()
            assert figures["answers"] == column.sum()
            if figures["acc"]:
                assert figures["f1"] == pytest.approx(2 / (1 / figures["acc"] + 1 / figures["precision"]))
