import csv
import json
import shutil
import sys
from hashlib import file_digest
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from omegaconf import OmegaConf
from torch import Tensor
from torchvision.transforms import v2

from vitlab.arguments.command import parse_overrides
from vitlab.errors import UserError
from vitlab.loaded_model import LoadedModel, open_model
from vitlab.runs.directory import RunDirectory

COMMAND = {"checkpoint": "best", "weights": None, "outputs": "outputs", "trusted_targets": []}


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> Path:
    """A finished run of this test's own."""
    return Path(shutil.copytree(small_run, tmp_path / "outputs" / "demo" / "a"))


def evaluated(run: Path, split: str = "test") -> dict[str, Any]:
    return json.loads((run / f"evaluation_{split}.json").read_text())


def test_evaluation_repeats_the_metrics_of_the_run_exactly(run: Path, command: Command, in_process: Command) -> None:
    final = json.loads((run / "metrics.json").read_text())
    for split, evaluate in (("test", command), ("val", in_process)):
        result = evaluate("evaluate.py", "run=outputs/demo/a", f"split={split}")
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


def reopened(run: Path, *overrides: str, **saved: Any) -> LoadedModel:
    """The model of a run whose trainer was another one."""
    file = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["vitlab_config"]["trainer"] |= saved
    torch.save(checkpoint, file)
    return open_model(OmegaConf.create({"run": str(run), **COMMAND}), parse_overrides(overrides))


@pytest.mark.parametrize("place", ["notebook", "command line"])
def test_a_run_of_several_machines_is_opened_in_one_process(
    place: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "notebook":
        monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    strategy = {"_target_": "vitlab.distributed.strategies.DataParallel", "timeout_seconds": 600}
    trainer = reopened(run, num_nodes=2, devices=8, strategy=strategy, sync_batchnorm=True).config.trainer
    assert [trainer[key] for key in ("num_nodes", "devices", "strategy", "sync_batchnorm")] == [1, 1, "auto", False]


@pytest.mark.parametrize("overrides", [[], ["trainer=cpu"], ["trainer.accelerator=cpu"]])
def test_a_run_in_float16_is_opened_on_a_cpu(overrides: list[str], run: Path) -> None:
    precision = reopened(run, *overrides, precision="16-mixed").config.trainer.precision
    assert precision in ("32-true", "bf16-mixed")
    with pytest.raises(UserError, match="precision=16-mixed"):
        reopened(run, *overrides, "trainer.precision=16-mixed")


@pytest.mark.parametrize(
    ("key", "value"),
    [("classes", "[j,i,h,g,f,e,d,c,b,a]"), ("num_classes", 9), ("image_size", 64), ("mean", [0, 0, 0])],
    ids=str,
)
def test_a_model_is_used_as_it_was_trained(key: str, value: Any, run: Path) -> None:
    with pytest.raises(UserError, match=key):
        reopened(run, f"data.{key}={value}")
    assert reopened(run, "data.image_size=32", "data.num_classes=10").config.data.image_size == 32


def views_of(images: Tensor, kind: str) -> list[Tensor]:
    """An oracle: images of 32 px, moved by one pixel with torchvision."""
    moved = [images]
    if kind != "flip":
        padded = v2.functional.pad(images, [1, 1, 1, 1], padding_mode="reflect")
        moved += [v2.functional.crop(padded, top, top, 32, 32) for top in (2, 0)]
    return moved if kind == "shift" else [*moved, *map(v2.functional.horizontal_flip, moved)]


@pytest.mark.parametrize(("kind", "count"), [("flip", 2), ("shift", 3), ("multi", 6)])
def test_averaged_views_are_reported_apart_and_change_no_other_number(
    kind: str, count: int, run: Path, in_process: Command
) -> None:
    single = json.loads((run / "metrics.json").read_text())
    result = in_process("evaluate.py", "run=latest", f"tta={kind}")
    assert result.returncode == 0, result.stderr
    found = evaluated(run)
    assert found["test/acc"] == single["test/acc"]
    assert found["test/loss"] == single["test/loss"]
    assert f"loss {found[f'test/loss_{kind}']:.4f}  accuracy {found[f'test/acc_{kind}']:.2%} (95%" in result.stdout
    model = open_model(OmegaConf.create({"run": str(run), **COMMAND}), [])
    test = model.load_data().splits["test"]
    views = views_of(model.preprocess(test.pick(slice(None))), kind)
    assert len(views) == count
    with torch.inference_mode():
        mean = torch.stack([model.forward(view).float().softmax(1) for view in views]).mean(0)
    assert found[f"test/acc_{kind}"] == pytest.approx((mean.argmax(1) == test.labels).float().mean().item(), abs=0.011)
    nll = -mean[range(len(test)), test.labels].log().mean().item()
    assert found[f"test/loss_{kind}"] == pytest.approx(nll, rel=1e-3)
    assert found[f"test/loss_{kind}"] != found["test/loss"]


def test_a_temperature_is_fitted_on_validation_images_and_used_when_asked(
    run: Path, in_process: Command, image_root: Path
) -> None:
    refused = in_process("predict.py", f"run={run}", f"images={image_root}", "calibrate=true")
    assert refused.returncode == 2
    assert "evaluate.py" in refused.stderr
    result = in_process("evaluate.py", f"run={run}", "calibrate=true")
    assert result.returncode == 0, result.stderr
    found = json.loads((run / "calibration.json").read_text())
    assert f"temperature {found['temperature']:.3f}, fitted on 40 val images" in result.stdout
    assert evaluated(run)["calibration"]["temperature"] == found["temperature"]
    assert (found["test/ece"] == found["test/ece_calibrated"]) == (found["temperature"] == 1.0)
    model = open_model(OmegaConf.create({"run": str(run), **COMMAND}), [])
    val = model.load_data().splits["val"]
    logits = model.logits(val.pick(slice(None)))

    def nll(temperature: float) -> float:
        return torch.nn.functional.cross_entropy(logits / temperature, val.labels).item()

    best = found["temperature"]
    assert nll(best) <= min(nll(best * 1.02), nll(best / 1.02)) + 1e-6

    out = run.parent / "out"
    given = [f"run={run}", f"images={image_root}", "top_k=10", "grid=0"]
    assert in_process("predict.py", *given, "calibrate=true", f"out={out}").returncode == 0
    assert in_process("predict.py", *given, f"out={out}2").returncode == 0
    tables = [next(csv.DictReader((folder / "predictions.csv").open())) for folder in (out, Path(f"{out}2"))]
    warm, plain = ({row[f"class_{i}"]: float(row[f"probability_{i}"]) for i in range(1, 11)} for row in tables)
    scaled = torch.tensor(list(plain.values())).log().div(best).softmax(0)
    assert [warm[name] for name in plain] == pytest.approx(scaled.tolist(), abs=1e-4)

    (run / "checkpoints" / "best.ckpt").unlink()
    (run / "checkpoints" / "last.ckpt").rename(run / "checkpoints" / "best.ckpt")
    if found["sha256"] != file_digest((run / "checkpoints" / "best.ckpt").open("rb"), "sha256").hexdigest():
        assert in_process("predict.py", *given, "calibrate=true").returncode == 2


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
        (["run=latest", "tta=twice"], "tta=twice is unknown; choose flip, shift, multi, or null"),
        (["run=latest", "split=train1"], "split=train1 is unknown; choose test, val or train"),
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
