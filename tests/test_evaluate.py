import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from omegaconf import OmegaConf

from vitlab.config.instantiate import build
from vitlab.loaded_model import open_model
from vitlab.runs.directory import RunDirectory

COMMAND = {"checkpoint": "best", "weights": None, "outputs": "outputs", "trusted_targets": []}


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> Path:
    """A finished run of this test's own."""
    return Path(shutil.copytree(small_run, tmp_path / "outputs" / "demo" / "a"))


def evaluated(run: Path, split: str = "test") -> dict[str, Any]:
    return json.loads((run / f"evaluation_{split}.json").read_text())


def test_evaluation_repeats_the_metrics_of_the_run_exactly(run: Path, command: Command) -> None:
    final = json.loads((run / "metrics.json").read_text())
    for split in ("test", "val"):
        result = command("evaluate.py", "run=outputs/demo/a", f"split={split}")
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
        for metric in (f"{split}/loss", f"{split}/acc"):
            assert evaluated(run, split)[metric] == final[metric]


def test_the_predictions_have_a_row_per_image_and_give_the_metrics(run: Path, in_process: Command) -> None:
    assert in_process("evaluate.py", "run=latest").returncode == 0
    rows = list(csv.DictReader((run / "predictions_test.csv").open()))
    assert [row["image"] for row in rows] == [f"test/{number}" for number in range(103)]
    metrics = evaluated(run)
    assert len(rows) == metrics["images"] == 103
    assert len({row["image"] for row in rows}) == 103
    assert sum(int(row["correct"]) for row in rows) / 103 == pytest.approx(metrics["test/acc"], abs=1e-6)
    for name, figures in metrics["per_class"].items():
        own = [int(row["correct"]) for row in rows if row["label"] == name]
        assert len(own) == figures["images"]
        assert sum(own) / len(own) == pytest.approx(figures["acc"])
    for row in rows:
        probabilities = {key[2:-1]: float(value) for key, value in row.items() if key.startswith("p(")}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-4)
        assert float(row["probability"]) == max(probabilities.values())
        assert probabilities[row["prediction"]] == float(row["probability"])
        assert (row["prediction"] == row["label"]) == (row["correct"] == "1")


def test_a_second_evaluation_keeps_the_files_of_the_first(run: Path, in_process: Command) -> None:
    assert in_process("evaluate.py", "run=latest").returncode == 0
    first = (run / "evaluation_test.json").read_text()
    assert in_process("evaluate.py", "run=latest", "checkpoint=last").returncode == 0
    assert evaluated(run)["checkpoint"].endswith("last.ckpt")
    assert first in [p.read_text() for p in run.glob("evaluation_test_*.json")]


def test_overrides_change_the_config_of_the_run(run: Path, in_process: Command, image_root: Path) -> None:
    smaller = in_process("evaluate.py", "run=latest", "data.test_images=50", "trainer=cpu")
    assert smaller.returncode == 0, smaller.stderr
    assert evaluated(run)["images"] == 50
    assert evaluated(run)["overrides"] == ["data.test_images=50", "trainer=cpu"]
    other = in_process("evaluate.py", "run=latest", "data=image_folder", f"data.root={image_root}")
    assert other.returncode == 2  # classes that the run does not know: said, not guessed
    assert "data.num_classes=10, but the data has 3 classes" in other.stderr


def test_flip_adds_the_accuracy_with_mirror_images_and_changes_no_other_number(run: Path, in_process: Command) -> None:
    assert in_process("evaluate.py", "run=latest").returncode == 0
    single = evaluated(run)
    result = in_process("evaluate.py", "run=latest", "flip=true")
    assert result.returncode == 0, result.stderr
    both = evaluated(run)
    mirrored = next(line for line in result.stdout.splitlines() if "mirror images" in line)
    assert f"mirror images: loss {both['test/loss_flip']:.4f}  accuracy {both['test/acc_flip']:.2%} (95%" in mirrored
    assert {key: value for key, value in both.items() if "flip" not in key and key != "overrides"} == {
        key: value for key, value in single.items() if key != "overrides"
    }
    model = open_model(OmegaConf.create({"run": str(run), **COMMAND}), [])
    data = build(model.config.data, "data", augmentations=[], seed=0)
    data.prepare_data()
    data.setup()
    test = data.splits["test"]
    images = test.pick(slice(None))
    mean = (model.logits(images).softmax(1) + model.logits(images.flip(-1)).softmax(1)) / 2
    assert both["test/acc_flip"] == pytest.approx((mean.argmax(1) == test.labels).float().mean().item())
    assert both["test/loss_flip"] == pytest.approx(-mean[range(len(test)), test.labels].log().mean().item(), rel=1e-4)
    assert both["test/loss_flip"] != both["test/loss"]


def test_a_run_can_be_moved(run: Path, in_process: Command, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    run.rename(moved)
    assert in_process("evaluate.py", f"run={moved}").returncode == 0
    assert evaluated(moved)["test/acc"] == json.loads((moved / "metrics.json").read_text())["test/acc"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "which model? give run=<run directory>, run=latest, or checkpoint=<file>"),
        (["run=nowhere"], "run=nowhere does not exist"),
        (["run=latest", "splt=val"], "unknown key 'splt'. Did you mean 'split'?"),
        (
            ["run=latest", "weights=ema"],
            "best.ckpt has no averaged weights; its run was not trained with callbacks=ema",
        ),
        (["run=latest", "weights=best"], "weights=best is unknown; choose raw or ema"),
        (["run=latest", "flip=twice"], "flip=twice must be true or false"),
        (["run=latest", "split=train"], "split=train is unknown; choose test or val"),
        (["run=latest", "checkpoint=none.ckpt"], "there is no file none.ckpt"),
        (["run=latest", "data.evalbatch=3"], "unknown key 'data.evalbatch'. Did you mean 'eval_batch_size'?"),
        (["run=latest", "trainer=cpux"], "there is no trainer=cpux. Did you mean 'cpu'?"),
        (["run=latest", "+data.x=1"], "only key=value can be given here"),
    ],
)
def test_wrong_input_gets_one_sentence(run: Path, arguments: list[str], sentence: str, in_process: Command) -> None:
    result = in_process("evaluate.py", *arguments)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert RunDirectory(run).config().name == "demo"
