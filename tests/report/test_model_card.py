"""The model card is what the hub reads, claims only what was measured, and its code runs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from huggingface_hub import ModelCard
from models.test_vision_transformer import make
from omegaconf import OmegaConf

from vitlab.report.model_card import Export, write_model_card
from vitlab.report.run_summary import RunSummary, accuracy_interval, read_run_summary
from vitlab.runs.directory import RunDirectory

FILES = {"config.json": "architecture", "model.safetensors": "weights", "model.onnx": "ONNX", "model.pt2": "torch"}
EXPORT = Export(FILES, make(), "raw", "best.ckpt", is_tested=True, repo=None, license=None)


@pytest.fixture
def summary(small_run: Path) -> RunSummary:
    return read_run_summary(RunDirectory(small_run))


def card_of(summary: RunSummary, folder: Path, **changes: Any) -> ModelCard:
    file = folder / "README.md"
    write_model_card(summary, replace(EXPORT, **changes), file)
    return ModelCard.load(file)


def test_the_hub_reads_the_run_s_test_results(summary: RunSummary, small_run: Path, tmp_path: Path) -> None:
    # An evaluation with other views or images changes nothing.
    (small_run / "evaluation_test.json").write_text(json.dumps({"test/acc": 1.0, "test/acc_flip": 1.0}))
    final = json.loads((small_run / "metrics.json").read_text())
    card = card_of(summary, tmp_path, license="mit", repo="user/first")
    about = card.data.to_dict()
    assert about["library_name"] == "timm"
    assert about["pipeline_tag"] == "image-classification"
    assert about["license"] == "mit"
    assert {"vitlab", "vision-transformer", "onnx"} <= set(about["tags"])
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results["accuracy"] == final["test/acc"]
    assert {(r.dataset_split, r.dataset_name) for r in card.data.eval_results} == {("test", "Synthetic")}
    assert card.data.model_name == "first"
    row = f"| test | 103 | {final['test/acc']:.2%} | {accuracy_interval(final['test/acc'], 103)} |"
    assert row in card.text
    manifest = json.loads((small_run / "manifest.json").read_text())
    for fact in (manifest["command"], manifest["data"]["test"]["sha256"], manifest["git"]["revision"]):
        assert fact in card.text
    for name in OmegaConf.load(small_run / "config.yaml").data.classes:
        assert f"`{name}`" in card.text


def test_without_a_licence_none_is_invented(summary: RunSummary, tmp_path: Path) -> None:
    assert "license" not in card_of(summary, tmp_path).data.to_dict()


@pytest.mark.parametrize(
    ("changes", "export", "reason"),
    [
        ({}, {"is_tested": False, "checkpoint": "last.ckpt"}, "another checkpoint than last.ckpt"),
        ({"final": {}}, {}, "has not finished"),
        ({"final": {"epoch": 2}, "epochs": [{"epoch": 2, "step": 2}]}, {}, "no validation and no test"),
    ],
    ids=str,
)
def test_what_was_not_measured_is_not_claimed(
    changes: dict[str, Any], export: dict[str, Any], reason: str, summary: RunSummary, tmp_path: Path
) -> None:
    card = card_of(replace(summary, **changes), tmp_path, **export)
    assert "model-index" not in card.data.to_dict()
    assert reason in card.text
    assert "95%" not in card.text


def test_a_checkpoint_is_exported_after_the_run_s_own_are_gone(
    small_run: Path, in_process: Command, tmp_path: Path
) -> None:
    run = shutil.copytree(small_run, tmp_path / "run")
    (run / "checkpoints" / "best.ckpt").rename(tmp_path / "kept.ckpt")
    shutil.rmtree(run / "checkpoints")
    result = in_process("src/vitlab/export.py", "run=run", "checkpoint=kept.ckpt", "out=here")
    assert result.returncode == 0, result.stderr
    assert "another checkpoint than kept.ckpt" in (tmp_path / "here" / "README.md").read_text()


def test_the_weights_that_are_exported_are_those_that_results_are_of(summary: RunSummary, tmp_path: Path) -> None:
    final = {**summary.final, "test/acc_ema": 0.75, "test/loss_ema": 0.5, "val/acc_ema": 0.5, "val/loss_ema": 0.5}
    card = card_of(replace(summary, final=final), tmp_path, weights="ema")
    assert [r.metric_value for r in card.data.eval_results if r.metric_type == "accuracy"] == [0.75]
    assert "| test | 103 | 75.00% |" in card.text


def test_without_test_images_the_validation_is_called_optimistic(summary: RunSummary, tmp_path: Path) -> None:
    final = {key: value for key, value in summary.final.items() if not key.startswith("test/")}
    card = card_of(replace(summary, final=final), tmp_path)
    assert card.data.eval_results is None
    assert "| validation | 40 |" in card.text
    assert "optimistic" in card.text


def test_the_weights_that_training_started_from_are_the_base_model(summary: RunSummary, tmp_path: Path) -> None:
    for origin, base in (("hf-hub:a/b@v1", "a/b"), ("weights.pth", None)):
        manifest = {**summary.manifest, "weights": {"from": origin}}
        assert card_of(replace(summary, manifest=manifest), tmp_path).data.base_model == base


def test_names_of_classes_and_folders_do_not_break_the_page(summary: RunSummary, tmp_path: Path) -> None:
    config = summary.config.copy()
    OmegaConf.set_readonly(config, False)
    config.data.classes = ["a|b", "<b>", "`c`", *(f"class_{number}" for number in range(40))]
    manifest = {**summary.manifest, "notes": ["splits of /home/me/pets: train from train/"]}
    config.data.root = "/home/me/pets"
    card = card_of(replace(summary, config=config, manifest=manifest), tmp_path)
    assert "`a¦b`, `<b>`, `'c'`" in card.text
    assert "and 23 more" in card.text
    assert "/home/me" not in card.text


@pytest.mark.parametrize("without", [(), ("config.json", "model.safetensors"), ("model.onnx", "model.pt2")], ids=str)
def test_only_the_files_that_are_there_are_explained(
    without: tuple[str, ...], summary: RunSummary, tmp_path: Path
) -> None:
    files = {name: text for name, text in FILES.items() if name not in without}
    text = card_of(summary, tmp_path, files=files).text
    assert ("create_model" in text, "onnxruntime" in text, "torch.export.load" in text) == (
        "config.json" in files,
        "model.onnx" in files,
        "model.pt2" in files,
    )
