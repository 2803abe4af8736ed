"""Whole runs on image folders: what the terminal, the run directory and the report say about their splits."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import SMALL_MODEL, Command

RUN = [
    *("experiment=demo", "data=image_folder", "data.batch_size=8", "trainer.max_epochs=1", "preflight=warn"),
    *("callbacks.figures.level=off", "logger=none", "hydra.run.dir=outputs/run", *SMALL_MODEL),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "run"


def test_a_folder_without_test_images_has_no_test_figures(image_root: Path, in_process: Command, run: Path) -> None:
    (image_root / "test").rename(image_root / "val")
    result = in_process("train.py", *RUN, f"data.root={image_root}")
    assert result.returncode == 0, result.stderr
    assert "no test images" in result.stdout
    assert "36 train, 12 val images" in result.stdout
    assert "split=val" in result.stdout.split("next:")[1]
    metrics = json.loads((run / "metrics.json").read_text())
    assert "val/acc" in metrics
    assert not [name for name in metrics if name.startswith("test/")]
    report = (run / "report.html").read_text()
    assert "no test images" in report
    assert "Test accuracy" not in report
    refused = in_process("evaluate.py", f"run={run}")
    assert refused.returncode == 2
    assert "split=val" in refused.stderr
    assert in_process("evaluate.py", f"run={run}", "split=val").returncode == 0
    assert in_process("-m", "vitlab.leaderboard", "outputs").returncode == 0
    resumed = in_process("train.py", f"resume={run}", "trainer.max_epochs=2")
    assert resumed.returncode == 0, resumed.stderr


def test_a_flat_folder_is_split_and_left_out_files_are_listed(image_root: Path, in_process: Command, run: Path) -> None:
    root = image_root / "train"
    shutil.rmtree(image_root / "test")
    (root / "ant" / "broken.png").write_text("no image")
    (root / "bee" / "notes.txt").write_text("no image")
    (root / "bee" / "._00.png").write_text("of a Mac")
    arguments = [*RUN, f"data.root={root}", "data.val_size=0.1"]
    refused = in_process("train.py", *arguments)
    assert refused.returncode == 2
    assert "broken.png" in refused.stderr
    result = in_process("train.py", *arguments, "data.skip_unreadable=true", "hydra.run.dir=outputs/skip")
    assert result.returncode == 0, result.stderr
    for part in ("train from its class folders", "data.val_size", "data.test_size", "1 unreadable", "1 .txt"):
        assert part in result.stdout
    listed = (run.parent / "skip" / "unreadable_images.txt").read_text()
    assert listed.startswith("ant/broken.png: ")
    report = (run.parent / "skip" / "report.html").read_text()
    for part in ("train from its class folders", "1 unreadable", "ant/broken.png: not an image"):
        assert part in report


def test_a_metric_that_needs_more_classes_is_refused_before_training(image_root: Path, in_process: Command) -> None:
    result = in_process("train.py", *RUN, f"data.root={image_root}", "metrics=[top5]", "checkpoint.monitor=val/top5")
    assert result.returncode == 2
    assert "needs 6 classes, not 3" in result.stderr
