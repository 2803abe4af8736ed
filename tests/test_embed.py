import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command
from models.test_knn import vote
from PIL import Image

RUN = ["-m", "vitlab.embed", "run=latest"]


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_run, tmp_path / "outputs" / "demo" / "a"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for name in ("x, $y$.png", "b.jpg", "c.png"):
        Image.fromarray(draw.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / name)
    return folder


def load(file: Path) -> dict[str, Any]:
    with np.load(file, allow_pickle=False) as content:
        return dict(content)


def test_a_split_gives_features_that_reproduce_the_runs_knn_accuracy(
    run: Path, in_process: Command, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        result = in_process(*RUN, f"split={split}", f"out={split}.npz")
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
    train, test = (load(tmp_path / f"{split}.npz") for split in ("train", "test"))
    assert (test["features"].shape, test["features"].dtype) == ((103, 32), np.float32)
    assert (test["labels"].dtype, test["predictions"].dtype) == (np.int64, np.int64)
    assert test["images"].tolist() == [f"test/{number}" for number in range(103)]
    assert str(test["model"]) == str(run.relative_to(tmp_path) / "checkpoints" / "best.ckpt")
    assert str(test["weights"]) == "raw"
    final = json.loads((run / "metrics.json").read_text())
    assert (test["predictions"] == test["labels"]).mean() == pytest.approx(final["test/acc"], abs=1e-6)
    found = [vote(train["features"], train["labels"].tolist(), query, 20, 0.07) for query in test["features"]]
    assert (found == test["labels"]).mean() == pytest.approx(final["test/knn_acc"], abs=0.01)  # bfloat16 may differ
    with Image.open(tmp_path / "test.png") as figure:
        assert "principal components" in figure.info["Description"]


def test_images_give_one_row_each_in_both_formats(run: Path, photos: Path, in_process: Command, tmp_path: Path) -> None:
    for out in ("a.npz", "a.csv"):
        result = in_process(*RUN, "images=photos", f"out={out}", "projection=false")
        assert result.returncode == 0, result.stderr
    assert not (tmp_path / "a.png").exists()
    content = load(tmp_path / "a.npz")
    assert "labels" not in content
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [row["image"] for row in rows] == content["images"].tolist()
    assert set(content["images"]) == {f"photos/{name}" for name in ("x, $y$.png", "b.jpg", "c.png")}
    written = np.array([[row[f"feature_{number}"] for number in range(1, 33)] for row in rows], dtype=np.float32)
    np.testing.assert_array_equal(written, content["features"])
    assert [row["prediction"] for row in rows] == [content["classes"][label] for label in content["predictions"]]
    said = in_process("predict.py", "run=latest", "images=photos", "top_k=1", "grid=0").stdout
    assert all(f"{row['image']}  {row['prediction']} " in said for row in rows)


def test_nothing_is_overwritten_and_the_run_keeps_files_without_a_name(
    run: Path, photos: Path, in_process: Command, tmp_path: Path
) -> None:
    result = in_process(*RUN, "photos/b.jpg", "photos/c.png", "format=csv")
    assert result.returncode == 0, result.stderr
    files = sorted((run / "embeddings").iterdir())
    assert [file.suffix for file in files] == [".csv", ".png"]
    for taken in ("here.npz", "here.png"):
        (tmp_path / taken).write_text("mine")
        result = in_process(*RUN, "images=photos", "out=here.npz")
        assert result.returncode == 2
        assert taken in result.stderr
        assert (tmp_path / taken).read_text() == "mine"
        (tmp_path / taken).unlink()


def test_images_that_cannot_be_read_are_said_at_the_end(
    run: Path, photos: Path, in_process: Command, tmp_path: Path
) -> None:
    (photos / "bad.png").write_text("no picture")
    result = in_process(*RUN, "images=photos", "out=a.npz")
    assert result.returncode == 2
    assert "1 of 4 images could not be read" in result.stderr
    assert len(load(tmp_path / "a.npz")["images"]) == 3


def test_a_checkpoint_and_class_folders_elsewhere(run: Path, in_process: Command, tmp_path: Path) -> None:
    shutil.copy(run / "checkpoints" / "best.ckpt", tmp_path / "model.ckpt")
    folder = tmp_path / "mine" / "ring"
    folder.mkdir(parents=True)
    Image.new("RGB", (32, 32), "red").save(folder / "one.png")
    chosen = ["checkpoint=model.ckpt", "split=test", "data=image_folder", "data.root=mine"]
    result = in_process("-m", "vitlab.embed", *chosen, "out=a.npz")
    assert result.returncode == 0, result.stderr
    content = load(tmp_path / "a.npz")
    assert content["classes"][content["labels"]].tolist() == ["ring"]
    assert not (tmp_path / "a.png").exists()  # of one image


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "images="),
        (["images=x.png", "split=test"], "images="),
        (["split=all"], "split=all"),
        (["split=test", "out=a.txt"], "out=a.txt"),
        (["split=test", "format=npy"], "format=npy"),
        (["split=test", "out=a.csv", "format=npz"], "format=npz"),
        (["split=test", "projection=tsne"], "projection=tsne"),
        (["images=nothing"], "1 of 1 images could not be read"),
    ],
)
def test_wrong_input_gets_a_sentence(run: Path, arguments: list[str], named: str, in_process: Command) -> None:
    result = in_process(*RUN, *arguments)
    assert result.returncode == 2
    assert named in result.stderr
    assert "Traceback" not in result.stderr
    assert not (run / "embeddings").exists() or not list((run / "embeddings").iterdir())
