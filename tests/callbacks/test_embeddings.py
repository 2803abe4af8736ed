"""The features of test images at the end of a run: k-NN accuracy, projection, Projector."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL_RUN, Command
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from vitlab.callbacks import embeddings

RUN = [*SMALL_RUN, "preflight=off", "trainer.max_epochs=1", "data.train_images=200", "hydra.run.dir=run"]
DRAWN = "callbacks.features.level=light"


def final(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


def projector(run: Path) -> tuple[np.ndarray, list[list[str]], Image.Image]:
    """Features, rows of metadata, and sprite of the one embedding."""
    (one,) = text_format.Parse((run / "projector_config.pbtxt").read_text(), ProjectorConfig()).embeddings
    rows = [line.split("\t") for line in (run / one.metadata_path).read_text().splitlines()]
    return np.loadtxt(run / one.tensor_path), rows, Image.open(run / one.sprite.image_path)


def test_a_run_ends_with_knn_accuracy_projection_and_projector(small_run: Path) -> None:
    metrics = final(small_run)
    assert 0 < metrics["test/knn_acc"] <= 1
    report = (small_run / "report.html").read_text()
    assert "k-NN accuracy" in report
    assert f"{metrics['test/knn_acc']:.2%}" in report
    assert "360 training images" in report
    with Image.open(small_run / "figures" / "85_test_features.png") as figure:
        assert figure.info["Source"] == "test/features"
    features, (heads, *rows), sprite = projector(small_run)
    assert features.shape == (103, 32)
    assert heads == ["class", "prediction", "image"]
    right = [label == prediction for label, prediction, _ in rows]
    assert np.mean(right) == pytest.approx(metrics["test/acc"], abs=1e-6)
    assert [name for *_, name in rows] == [f"test/{number}" for number in range(103)]
    assert sprite.size == (11 * 32, 11 * 32)


def test_the_sprite_shows_the_images_in_the_order_of_the_features(
    in_process: Command, tmp_path: Path, image_root: Path
) -> None:
    chosen = ["data=image_folder", f"data.root={image_root}", "data.batch_size=8", "trainer.max_epochs=1"]
    quick = [DRAWN, "callbacks.figures.level=off", "preflight=off", "data.eval_batch_size=5"]
    sizes = ["model.embed_dim=16", "model.depth=1", "model.num_heads=2", "model.patch_size=8", "data.stored_size=32"]
    result = in_process("train.py", *chosen, *sizes, *quick, "hydra.run.dir=run")
    assert result.returncode == 0, result.stderr
    _, (_, *rows), sprite = projector(tmp_path / "run")
    tiles = np.asarray(sprite).reshape(4, 32, 4, 32, 3).swapaxes(1, 2).reshape(16, 32, 32, 3)
    assert len(rows) == 12
    for tile, (*_, name) in zip(tiles, rows, strict=False):
        pixels = np.asarray(Image.open(image_root / name))
        assert np.abs(tile.astype(int) - pixels).max() <= 1, name


def test_at_most_so_many_images_are_shown_of_all_classes(
    in_process: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "MAX_POINTS", 40)
    monkeypatch.setattr(embeddings, "THUMBNAIL", 8)
    assert in_process("train.py", *RUN, DRAWN).returncode == 0
    features, (_, *rows), sprite = projector(tmp_path / "run")
    assert len(features) == len(rows) == 40
    assert len({label for label, *_ in rows}) == 10
    assert sprite.size == (7 * 8, 7 * 8)
    with Image.open(tmp_path / "run" / "figures" / "85_test_features.png") as figure:
        assert "40 of the 103" in str(figure.info["Description"])


def test_evaluate_measures_the_same(small_run: Path, in_process: Command, tmp_path: Path) -> None:
    run = shutil.copytree(small_run, tmp_path / "outputs" / "demo" / "a")
    assert in_process("evaluate.py", f"run={run}", "knn=true").returncode == 0
    evaluated = json.loads((run / "evaluation_test.json").read_text())
    assert evaluated["test/knn_acc"] == final(run)["test/knn_acc"]
    assert in_process("evaluate.py", f"run={run}", "knn=true", "tta=multi").returncode == 0
    assert json.loads((run / "evaluation_test.json").read_text())["test/knn_acc"] == evaluated["test/knn_acc"]
    result = in_process("evaluate.py", f"run={run}", "knn=true", "split=val", "calibrate=true", "tta=flip")
    assert result.returncode == 0, result.stderr
    assert not re.search(r"k-NN accuracy(?! \d)", result.stdout)  # of views it is not measured
    assert 0 < json.loads((run / "evaluation_val.json").read_text())["val/knn_acc"] <= 1
    assert "k-NN accuracy" in result.stdout
    for wrong in (["split=train"], ["knn=20"]):
        result = in_process("evaluate.py", f"run={run}", "knn=true", *wrong)
        assert result.returncode == 2
        assert "knn=" in result.stderr


def test_without_figures_only_the_accuracy_is_measured(in_process: Command, tmp_path: Path) -> None:
    assert in_process("train.py", *RUN, "callbacks.features.knn_images=100").returncode == 0
    assert "test/knn_acc" in final(tmp_path / "run")
    assert not list((tmp_path / "run" / "figures").iterdir())
    assert not (tmp_path / "run" / "projector_config.pbtxt").exists()


@pytest.mark.parametrize(
    "off", [["callbacks.features.knn_images=0"], ["callbacks.features=null"], ["callbacks=none"]], ids=str
)
def test_the_accuracy_can_be_left_out(off: list[str], in_process: Command, tmp_path: Path) -> None:
    rest = [argument for argument in RUN if off != ["callbacks=none"] or not argument.startswith("callbacks.")]
    assert in_process("train.py", *rest, *off).returncode == 0
    assert "test/acc" in final(tmp_path / "run")
    assert "test/knn_acc" not in final(tmp_path / "run")


def test_a_model_without_a_head_is_left_out_with_a_warning(in_process: Command, tmp_path: Path) -> None:
    rest = [argument for argument in RUN if not argument.startswith("model.")]
    result = in_process("train.py", *rest, DRAWN, "model._target_=preflight.networks.EndsInSoftmax")
    assert result.returncode == 0, result.stderr
    assert "EndsInSoftmax" in result.stderr
    assert "get_classifier" in result.stderr
    assert "test/knn_acc" not in final(tmp_path / "run")
    assert not (tmp_path / "run" / "figures" / "85_test_features.png").exists()
    trusted = "trusted_targets=[preflight.]"
    assert in_process("evaluate.py", "run=run", trusted, "knn=true").returncode == 2


def test_the_features_are_of_the_weights_that_select_the_epoch(in_process: Command, tmp_path: Path) -> None:
    averaged = ["callbacks=ema", "checkpoint.monitor=val/acc_ema"]
    assert in_process("train.py", *RUN, *averaged, DRAWN).returncode == 0
    metrics = final(tmp_path / "run")
    assert "test/knn_acc" not in metrics
    assert in_process("-m", "vitlab.embed", "run=run", "split=test", "out=a.npz").returncode == 0
    with np.load(tmp_path / "a.npz") as content:
        assert str(content["weights"]) == "ema"
        np.testing.assert_allclose(projector(tmp_path / "run")[0], content["features"], atol=0.05)
    assert in_process("evaluate.py", "run=run", "knn=true").returncode == 0
    evaluated = json.loads((tmp_path / "run" / "evaluation_test.json").read_text())
    assert evaluated["test/knn_acc"] == pytest.approx(metrics["test/knn_acc_ema"], abs=0.03)  # bfloat16 or not


def test_a_compiled_model_is_measured_too(in_process: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(embeddings, "is_compiled", lambda network: True)
        assert in_process("train.py", *RUN, DRAWN).returncode == 0
    assert in_process("-m", "vitlab.embed", "run=run", "split=test", "out=a.npz").returncode == 0
    with np.load(tmp_path / "a.npz") as content:
        np.testing.assert_allclose(projector(tmp_path / "run")[0], content["features"], atol=0.05)
    assert in_process("evaluate.py", "run=run", "knn=true").returncode == 0  # by hooks
    evaluated = json.loads((tmp_path / "run" / "evaluation_test.json").read_text())
    assert evaluated["test/knn_acc"] == final(tmp_path / "run")["test/knn_acc"]
