import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from PIL import Image

TINY_MODEL = ["model.embed_dim=32", "model.depth=1", "model.num_heads=2", "model.patch_size=8"]


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_run, tmp_path / "outputs" / "demo" / "a"))


def rows_of(folder: Path) -> list[dict[str, str]]:
    (file,) = folder.rglob("predictions.csv")
    return list(csv.DictReader(file.open()))


def test_images_of_any_format_are_classified(run: Path, in_process: Command, tmp_path: Path) -> None:
    photos = tmp_path / "2026"  # a name that reads as a number
    (photos / "deep er").mkdir(parents=True)
    draw = np.random.default_rng(0)
    colour = Image.fromarray(draw.integers(0, 256, (90, 120, 3), dtype=np.uint8))
    colour.save(photos / "x$^$y.jpg")
    colour.convert("L").save(photos / "grey.png")
    colour.convert("P").save(photos / "palette.gif")
    colour.convert("RGBA").save(photos / "deep er" / "alpha.webp")
    colour.resize((3, 5)).save(photos / "tiny.bmp")
    Image.fromarray(draw.integers(0, 65536, (20, 20), dtype=np.uint16)).save(photos / "deep.tif")
    (photos / "notes.txt").write_text("no picture")
    (photos / "paper.pdf").write_text("no picture either")
    result = in_process("predict.py", "run=latest", "images=2026")
    assert result.returncode == 0, result.stderr
    rows = rows_of(run / "predictions")
    assert {row["image"] for row in rows} == {
        f"2026/{name}" for name in ["x$^$y.jpg", "grey.png", "palette.gif", "tiny.bmp", "deep.tif"]
    } | {"2026/deep er/alpha.webp"}
    for row in rows:
        probabilities = [float(row[f"probability_{rank}"]) for rank in (1, 2, 3)]
        assert probabilities == sorted(probabilities, reverse=True)
        (told,) = re.findall(rf"^{re.escape(row['image'])}  {row['class_1']} ([\d.]+)%", result.stdout, re.MULTILINE)
        assert abs(float(told) - 100 * probabilities[0]) <= 0.0501  # each is rounded for itself
    grid = Image.open(next(run.rglob("grid.png")))
    assert grid.width > 500
    assert len(np.unique(np.asarray(grid.convert("L")))) > 50


def test_unreadable_images_are_named_and_the_others_classified(run: Path, in_process: Command, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no picture")
    result = in_process("predict.py", "run=latest", "images=[bad.png,good.png,missing.png,'*.jpg']", "top_k=1")
    assert result.returncode == 2
    assert "3 of 4 images could not be read" in result.stderr
    for line in ("bad.png: not an image that Pillow can read", "missing.png: no such file", "*.jpg: no such file"):
        assert line in result.stderr
    assert [row["image"] for row in rows_of(run / "predictions")] == ["good.png"]
    assert "Traceback" not in result.stderr


def test_a_bare_checkpoint_is_enough(run: Path, in_process: Command, tmp_path: Path) -> None:
    shutil.copy(run / "checkpoints" / "best.ckpt", tmp_path / "model.ckpt")
    shutil.rmtree(run)
    Image.new("RGB", (40, 40)).save(tmp_path / "one.png")
    result = in_process("predict.py", "checkpoint=model.ckpt", "images=one.png", "out=here", "top_k=20")
    assert result.returncode == 0, result.stderr
    assert len(rows_of(tmp_path / "here")[0]) == 1 + 2 * 10
    again = in_process("predict.py", "checkpoint=model.ckpt", "images=*.png", "out=here", "grid=null")
    assert again.returncode == 0, again.stderr
    assert [file.name for file in (tmp_path / "here_2").iterdir()] == ["predictions.csv"]
    (tmp_path / "here" / "predictions.csv").unlink()
    before = (tmp_path / "here" / "grid.png").stat().st_mtime_ns
    assert in_process("predict.py", "checkpoint=model.ckpt", "images=one.png", "out=here").returncode == 0
    assert (tmp_path / "here" / "grid.png").stat().st_mtime_ns == before
    assert (tmp_path / "here_3" / "grid.png").exists()


def test_patterns_and_lists_take_each_image_once(run: Path, in_process: Command, tmp_path: Path) -> None:
    for name in ("a1.png", "a2.png", "b.png"):
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    result = in_process("predict.py", "run=latest", "images=[b.png,'a*.png',a1.png]", "grid=0")
    assert result.returncode == 0, result.stderr
    assert not list(run.rglob("grid.png"))
    assert [row["image"] for row in rows_of(run / "predictions")] == ["b.png", "a1.png", "a2.png"]


def test_predict_and_evaluate_agree(in_process: Command, tmp_path: Path, image_root: Path) -> None:
    choices = ["data=image_folder", f"data.root={image_root}", "data.batch_size=8", "trainer.max_epochs=3", *TINY_MODEL]
    assert in_process("train.py", *choices, "preflight=off", "callbacks.figures.level=off").returncode == 0
    assert in_process("evaluate.py", "run=latest").returncode == 0
    assert in_process("predict.py", "run=latest", f"images={image_root}/test", "out=out").returncode == 0
    (file,) = tmp_path.rglob("predictions_test.csv")
    expected = {row["image"]: row["prediction"] for row in csv.DictReader(file.open())}
    predicted = {str(Path(row["image"]).relative_to(image_root)): row["class_1"] for row in rows_of(tmp_path / "out")}
    assert predicted == expected
    limited = in_process("evaluate.py", "run=latest", "trainer.limit_test_batches=1", "data.eval_batch_size=6")
    assert limited.returncode == 0
    rows = list(csv.DictReader((file.parent / "predictions_test.csv").open()))
    assert len({row["label"] for row in rows}) > 1  # not the first of the class folders alone
    assert len(rows) == 6
    assert len(predicted) == 12


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["images=x.png"], "which model? give run=<run directory>, run=latest, or checkpoint=<file>"),
        (["run=latest"], "images must be given"),
        (["run=latest", "images=nothing"], "1 of 1 images could not be read"),
        (["checkpoint=none.ckpt", "images=x.png"], "there is no checkpoint none.ckpt"),
        (["run=latest", "images=x.png", "top_k=0"], "top_k=0 must be at least 1"),
        (["run=nowhere", "images=x.png", "top_k=all"], "top_k=all"),  # said before the run is looked for
        (["run=nowhere", "images=x.png", "top_k=2.5"], "top_k=2.5"),
        (["run=nowhere", "images=x.png", "top_k=null"], "top_k=None"),
        (["run=nowhere", "images=x.png", "grid=all"], "grid=all"),
        (["run=nowhere", "images=x.png", "calibrate=no"], "calibrate=no"),
        (["run=latest", "images="], "images= is empty"),
        (["run=latest", "images=['']"], "images= is empty"),
    ],
)
def test_wrong_input_gets_a_sentence(run: Path, arguments: list[str], sentence: str, in_process: Command) -> None:
    result = in_process("predict.py", *arguments)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
