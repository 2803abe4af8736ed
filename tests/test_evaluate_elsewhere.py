"""What people evaluate on: other images, a checkpoint alone, a moved run, an export, from another folder."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL_MODEL, Command, run_here
from PIL import Image

CLASSES = ["ant", "bee", "cow"]
QUICK = [
    *SMALL_MODEL,
    *("data=image_folder", "data.batch_size=16", "trainer=cpu", "trainer.precision=32-true", "trainer.max_epochs=2"),
    *("callbacks.figures.level=off", "callbacks.vit_figures=null", "logger=none", "preflight=off"),
]


def draw(folder: Path, classes: list[str], count: int, seed: int) -> None:
    numbers = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = numbers.integers(0, 200, (32, 32, 3), dtype=np.uint8)
            pixels[..., CLASSES.index(name) % 3] += 55
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `images/` and a run on them, which was told their relative path."""
    folder = tmp_path_factory.mktemp("trained")
    draw(folder / "images" / "train", CLASSES, 24, 0)
    draw(folder / "images" / "test", CLASSES, 6, 1)
    result = run_here("train.py", *QUICK, "data.root=images", "hydra.run.dir=run", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """The run, moved, in the working directory."""
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


def evaluated(folder: Path, split: str = "test") -> tuple[dict[str, Any], list[dict[str, str]]]:
    with (folder / f"predictions_{split}.csv").open() as file:
        return json.loads((folder / f"evaluation_{split}.json").read_text()), list(csv.DictReader(file))


def test_a_moved_run_finds_its_images_from_another_folder(run: Path, in_process: Command) -> None:
    assert in_process("evaluate.py", "run=run").returncode == 0
    found, rows = evaluated(run)
    final = json.loads((run / "metrics.json").read_text())
    assert [found[key] for key in ("test/acc", "test/loss", "images")] == [final["test/acc"], final["test/loss"], 18]
    assert {row["label"] for row in rows} == set(CLASSES)


@pytest.mark.parametrize("layout", ["flat", "flat/test", "flat/train, flat/test"])
@pytest.mark.parametrize("classes", [CLASSES, ["bee", "cow"], ["cow"]])
def test_all_images_of_another_folder_are_evaluated(
    run: Path, trained: Path, layout: str, classes: list[str], in_process: Command, tmp_path: Path
) -> None:
    for place in layout.split(", "):
        draw(tmp_path / place, classes, 9 if place == "flat/train" else 5, 2)
    result = in_process("evaluate.py", "run=run", "data.root=flat")
    assert result.returncode == 0, result.stderr
    assert f"images: all {5 * len(classes)} of the class folders" in result.stdout
    found, rows = evaluated(run)
    assert {name: row["images"] for name, row in found["per_class"].items()} == {
        name: 5 if name in classes else 0 for name in CLASSES
    }
    assert [(row["label"], row["image"]) for row in rows if row["label"] != Path(row["image"]).parts[0]] == []
    predicted = in_process("predict.py", "run=run", "images=flat", "top_k=1", "out=predictions", "grid=0")
    assert predicted.returncode == 0
    with (tmp_path / "predictions" / "predictions.csv").open() as file:
        classes_of = {Path(row["image"]).parts[-2:]: row["class_1"] for row in csv.DictReader(file)}
    if layout == "flat":
        assert {Path(row["image"]).parts: row["prediction"] for row in rows} == classes_of


def test_another_order_of_the_classes_changes_no_accuracy(run: Path, in_process: Command, tmp_path: Path) -> None:
    """Of two runs, one knows the classes in another order than that of the folders."""
    draw(tmp_path / "flat", CLASSES, 5, 2)
    assert in_process("evaluate.py", "run=run", "data.root=flat").returncode == 0
    before, _ = evaluated(run)
    file = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    order = [2, 0, 1]
    checkpoint["vitlab_config"]["data"]["classes"] = [CLASSES[i] for i in order]
    for name in ("network.head.weight", "network.head.bias"):
        checkpoint["state_dict"][name] = checkpoint["state_dict"][name][order]
    torch.save(checkpoint, file)
    assert in_process("evaluate.py", "run=run", "data.root=flat").returncode == 0
    after, _ = evaluated(run)
    assert after["per_class"] == before["per_class"]
    assert list(after["per_class"]) == [CLASSES[i] for i in order]


@pytest.mark.parametrize("name", ["alone.ckpt", "export", "export/model.safetensors"])
def test_a_model_without_a_run_is_evaluated(
    run: Path, trained: Path, name: str, in_process: Command, tmp_path: Path
) -> None:
    shutil.copy(run / "checkpoints" / "best.ckpt", tmp_path / "alone.ckpt")
    if "export" in name:
        assert in_process("-m", "vitlab.export", "run=run", "out=export").returncode == 0
        assert in_process("predict.py", f"checkpoint={name}", f"images={trained / 'images'}").returncode == 0
        assert "exported already" in in_process("-m", "vitlab.export", "run=export").stderr
    final = json.loads((run / "metrics.json").read_text())
    shutil.rmtree(run)
    given = [f"checkpoint={name}", "trainer.precision=32-true"]
    given += [f"data.root={trained / 'images'}"] if "export" in name else []
    for attempt in (1, 2):
        result = in_process("evaluate.py", *given)
        assert result.returncode == 0, result.stderr
        found, rows = evaluated(tmp_path)
        assert found["test/acc"] == final["test/acc"]
        assert found["test/loss"] == pytest.approx(final["test/loss"], rel=1e-5)
        assert len(rows) == 18
        assert len(list(tmp_path.glob("evaluation_test*.json"))) == attempt  # nothing is overwritten


def test_the_images_of_the_run_keep_its_splits(run: Path, trained: Path, in_process: Command) -> None:
    root = trained / "images"
    assert in_process("evaluate.py", "run=run", "split=val", f"data.root={root}").returncode == 0
    found, _ = evaluated(run, "val")
    final = json.loads((run / "metrics.json").read_text())
    assert found["images"] == 7  # a tenth of train/, not all of it
    assert found["val/loss"] == final["val/loss"]
    assert in_process("evaluate.py", "run=run", "split=train", f"data.root={root}").returncode == 0
    assert evaluated(run, "train")[0]["images"] == 65
    result = in_process("evaluate.py", "run=run", "knn=true", "calibrate=true", f"data.root={root}")
    assert result.returncode == 0, result.stderr
    assert "test/knn_acc" in evaluated(run)[0]


def test_folders_that_training_skips_or_renames_are_no_other_classes(
    run: Path, in_process: Command, tmp_path: Path
) -> None:
    draw(tmp_path / "flat", CLASSES, 5, 2)
    (tmp_path / "flat" / "__MACOSX" / "ant").mkdir(parents=True)
    (tmp_path / "flat" / "@eaDir").mkdir()
    file = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["vitlab_config"]["data"]["classes"][2] = "caf\u00e9"
    torch.save(checkpoint, file)
    (tmp_path / "flat" / "cow").rename(tmp_path / "flat" / "cafe\u0301")  # as on a Mac
    result = in_process("evaluate.py", "run=run", "data.root=flat")
    assert result.returncode == 0, result.stderr
    assert evaluated(run)[0]["images"] == 15


def test_what_can_t_be_evaluated_is_said(run: Path, trained: Path, in_process: Command, tmp_path: Path) -> None:
    draw(tmp_path / "flat", CLASSES, 2, 2)
    (tmp_path / "flat" / "cow" / "broken.png").write_bytes(b"no image")
    (tmp_path / "other" / "dog").mkdir(parents=True)
    (tmp_path / "other" / "bee").mkdir()
    for arguments, sentence in (
        (["run=run", "data.root=flat"], "broken.png"),
        (["run=run", "data.root=other"], "none of the run's classes: dog"),
        (["run=run", "data.root=nowhere"], "nowhere"),
        (["checkpoint=nowhere.ckpt"], "there is no checkpoint nowhere.ckpt"),
        ([], "give run="),
    ):
        result = in_process("evaluate.py", *arguments)
        assert result.returncode == 2, arguments
        assert sentence in result.stderr
        assert "Traceback" not in result.stderr
    assert in_process("evaluate.py", "run=run", "data.root=flat", "data.skip_unreadable=true").returncode == 0
    assert evaluated(run)[0]["images"] == 6
