"""vitlab.load and vitlab.train, as a Python program or a notebook uses them."""

import asyncio
import csv
import gc
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl  # its loggers have a level from now on
import torch
from conftest import SMALL_RUN, Command, run_script
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image

import vitlab
from vitlab.api import Model, Prediction
from vitlab.classifier import ImageClassifier
from vitlab.errors import TerminatedError

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
CHANNELS_FIRST = PIXELS.transpose(2, 0, 1).copy()
KINDS = {
    "path": lambda folder: folder / "photos" / "a.png",
    "text": lambda folder: str(folder / "photos" / "a.png"),
    "Pillow": lambda folder: Image.open(folder / "photos" / "a.png"),
    "RGBA": lambda folder: Image.fromarray(PIXELS).convert("RGBA"),
    "array": lambda folder: PIXELS,
    "float64 array": lambda folder: PIXELS / 255,
    "float32 array": lambda folder: (PIXELS / 255).astype(np.float32),
    "tensor": lambda folder: torch.from_numpy(CHANNELS_FIRST),
    "float tensor": lambda folder: torch.from_numpy(CHANNELS_FIRST) / 255,
}
STOP = ["+callbacks.stop._target_=stoppers.SendSignal", "+callbacks.stop.epoch=1", "+callbacks.stop.batch=1"]
SHORT_RUN = [*SMALL_RUN, "trainer.max_epochs=1", "data.train_images=150", "data.test_images=40"]
MEASURED = {"seconds", "images_per_second", "data_wait", "memory_gib"}


@pytest.fixture
def folder(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a run and photos."""
    shutil.copytree(small_run, tmp_path / "outputs" / "demo" / "a")
    (tmp_path / "photos").mkdir()
    Image.fromarray(PIXELS).save(tmp_path / "photos" / "a.png")
    Image.fromarray(255 - PIXELS).save(tmp_path / "photos" / "b.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(folder: Path) -> Model:
    return vitlab.load()


def process_state() -> dict[str, Any]:
    loggers = [logging.getLogger(name) for name in (None, "vitlab", pl.__name__, "lightning_fabric")]
    return {
        "arguments": sys.argv[:],
        "environment": {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "folder": Path.cwd(),
        "signals": {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)},
        "filters": (list(warnings.filters), warnings.showwarning),
        "logging": [(set(logger.handlers), logger.level, logger.propagate) for logger in loggers],
        "raises": logging.raiseExceptions,
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark),
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
        "hydra": GlobalHydra.instance().hydra,
        "module": sys.modules["__main__"].__spec__,
    }


@pytest.fixture
def unchanged_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A program that uses logging and Hydra itself, and finds both as they were."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    file = logging.FileHandler(tmp_path / "own.log", mode="w")
    logging.root.addHandler(file)
    with initialize_config_dir(str(tmp_path / "own"), version_base="1.3"):
        before = process_state()
        yield
        after = process_state()
    logging.error("afterwards")
    logging.root.removeHandler(file)
    assert after == before
    assert (tmp_path / "own.log").read_text() == "afterwards\n"


def test_torch_waits_until_it_is_needed(tmp_path: Path) -> None:
    program = """
import sys
import vitlab
assert {"load", "train", "UserError", "__version__"} <= set(dir(vitlab))
assert not {"torch", "hydra"} & set(sys.modules)
try:
    vitlab.train("optimizer.lrr=1", trainer={"max_epochs": "abc"})
except vitlab.UserError as error:
    assert len(str(error).splitlines()) == 2, error
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    assert not list(tmp_path.iterdir())
    with pytest.raises(AttributeError, match="nothing"):
        _ = vitlab.nothing  # type: ignore[attr-defined]


# Load and predict


def test_predictions_are_those_of_the_command(model: Model, in_process: Command) -> None:
    result = in_process("predict.py", "run=latest", "images=photos", "top_k=10", "out=out", "grid=0")
    assert result.returncode == 0, result.stderr
    rows = list(csv.DictReader(Path("out/predictions.csv").read_text().splitlines()))
    predictions = model.predict("photos")
    assert [str(prediction.file) for prediction in predictions] == [row["image"] for row in rows]
    for row, prediction in zip(rows, predictions, strict=True):
        assert (row["class_1"], row["probability_1"]) == (prediction.label, f"{prediction.probability:.6f}")
        assert [row[f"class_{rank}"] for rank in range(1, 11)] == list(prediction.probabilities)
        assert sum(prediction.probabilities.values()) == pytest.approx(1)
        assert prediction.label in repr(prediction)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_any_kind_gets_the_same_prediction(kind: str, folder: Path, model: Model) -> None:
    expected = model.predict("photos/a.png").probabilities
    prediction = model.predict(KINDS[kind](folder))
    assert isinstance(prediction, Prediction)
    assert prediction.probabilities == expected
    assert prediction.file == (folder / "photos" / "a.png" if kind in ("path", "text") else None)


def test_several_images_get_a_list_in_their_order(model: Model) -> None:
    a, b = (model.predict(f"photos/{name}.png").label for name in "ab")
    batch = np.stack([PIXELS, 255 - PIXELS])
    for images in ("photos", "photos/*.png", batch, torch.from_numpy(batch).permute(0, 3, 1, 2), list(batch)):
        assert [prediction.label for prediction in model.predict(images)] == [a, b]
    mixed = model.predict(["photos/b.png", PIXELS, "photos/b.png"])
    assert [prediction.label for prediction in mixed] == [b, a, b]
    assert model.predict([]) == []


def test_an_unreadable_file_is_refused_or_in_a_folder_left_out(model: Model) -> None:
    Path("photos/bad.png").write_text("no picture")
    with pytest.raises(vitlab.UserError, match=r"bad\.png: not an image"):
        model.predict(["photos/a.png", "photos/bad.png"])
    with pytest.warns(UserWarning, match=r"left out photos/bad\.png"):
        assert len(model.predict("photos")) == 2


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (7, "int is no image"),
        ("nothing.png", "nothing.png: no such file"),
        (CHANNELS_FIRST, r"array of shape \[3, 40, 50\]: expected \[height, width, channels\]"),
        (torch.from_numpy(PIXELS), r"tensor of shape \[40, 50, 3\]: expected \[channels, height, width\]"),
        (PIXELS.astype(np.int64), "int64: expected uint8, or floating point"),
        (PIXELS.astype(np.float32), "values from 0 to 255: expected 0 to 1"),
        (np.full((4, 4, 3), np.nan), "values from nan"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        ([[1]], "int is no image"),
        ("", "empty text"),
        (b"GIF89a", "bytes is no image"),
        (BytesIO(b"GIF89a"), "BytesIO is no image"),
        ({"a": PIXELS}, "dict is no image"),
        (Image.new("RGB", (0, 4)), "0 x 4 pixels"),
    ],
)
def test_what_is_no_image_is_refused(images: Any, reason: str, model: Model) -> None:
    with pytest.raises(vitlab.UserError, match=reason):
        model.predict(images)


def test_features_are_what_the_head_reads(model: Model) -> None:
    features = model.embed("photos")
    assert features.shape == (2, 32)
    assert features.dtype == torch.float32
    network: Any = model.network
    labels = network.get_classifier()(features).argmax(dim=1).tolist()
    assert [model.classes[label] for label in labels] == [prediction.label for prediction in model.predict("photos")]
    with pytest.raises(vitlab.UserError, match="at least one"):
        model.embed([])


def test_an_explanation_is_an_image(model: Model) -> None:
    figure = model.explain("photos/a.png")
    figure.save("explained.png")
    assert Image.open("explained.png").width > 1000
    other = model.explain(PIXELS, target="ring")
    assert np.asarray(other).tolist() != np.asarray(figure).tolist()
    with pytest.raises(vitlab.UserError, match="one image"):
        model.explain("photos")
    with pytest.raises(vitlab.UserError, match="target=rong"):
        model.explain(PIXELS, target="rong")


def test_a_run_a_checkpoint_and_an_export_are_opened(folder: Path, model: Model, in_process: Command) -> None:
    expected = model.predict("photos/a.png").probabilities
    run = Path("outputs/demo/a")
    Path("config.yaml").touch()  # of the project that the run was made in
    shutil.copy(run / "checkpoints" / "best.ckpt", "bare.ckpt")
    assert in_process("src/vitlab/export.py", "run=latest", "out=export").returncode == 0
    own = run / "checkpoints" / "own" / "epoch.ckpt"  # as a callback of the user's names it
    own.parent.mkdir()
    shutil.copy("bare.ckpt", own)
    runs = ("outputs/demo/latest", "demo/latest", "demo/a", run, run / "checkpoints" / "best.ckpt", own)
    for source in (*runs, "bare.ckpt"):
        opened = vitlab.load(source)
        assert opened.predict("photos/a.png").probabilities == expected
        assert (opened.run is None) == (source == "bare.ckpt")
    assert vitlab.load(run, checkpoint="last").checkpoint.name == "last.ckpt"
    for source in (run / "checkpoints" / "last.ckpt", "demo/a/checkpoints/last.ckpt"):
        assert vitlab.load(source).checkpoint.name == "last.ckpt"
    assert vitlab.load("export").predict("photos/a.png").label == next(iter(expected))
    assert vitlab.load("latest", "trainer=cpu", "data.eval_batch_size=7").config.data.eval_batch_size == 7


def test_lightnings_own_way_opens_a_checkpoint(model: Model) -> None:
    classifier = ImageClassifier.load_from_checkpoint(str(model.checkpoint), map_location="cpu", seed=7).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(classifier(images), model.network(images))
    assert classifier.seed == 7
    assert set(classifier.new_metrics().metrics) == {"acc", "top5", "f1"}
    with pytest.raises(vitlab.UserError, match="there is no checkpoint"):
        ImageClassifier.load_from_checkpoint("nothing.ckpt")
    checkpoint = torch.load(model.checkpoint, weights_only=True)
    checkpoint["vitlab_config"]["model"]["_target_"] = "os.system"
    torch.save(checkpoint, "stranger.ckpt")
    with pytest.raises(vitlab.UserError, match=r"would run os\.system"):
        ImageClassifier.load_from_checkpoint("stranger.ckpt")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nothing"], "nothing does not exist"),
        (["latest", "colour=red"], "unknown key 'colour'"),
        (["latest", "trainer=gpux"], "Did you mean 'gpu'"),
        (["latest", "x"], "not of the form key=value"),
        (["photos/a.png"], "can't be read as a checkpoint"),
    ],
)
def test_a_wrong_source_or_override_is_refused(arguments: list[str], reason: str, folder: Path) -> None:
    with pytest.raises(vitlab.UserError, match=reason):
        vitlab.load(*arguments)


def test_loading_and_predicting_leave_the_process_as_it_was(
    folder: Path, unchanged_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    model = vitlab.load("latest", "trainer=cpu")
    model.predict(PIXELS)
    model.explain(PIXELS)
    assert capsys.readouterr() == ("", "")


# Train


def test_training_equals_the_command_and_leaves_the_process_as_it_was(
    small_run: Path, unchanged_process: None, tmp_path: Path
) -> None:
    expected = json.loads((small_run / "metrics.json").read_text())
    for number in range(2):
        notes, preflight = f"number {number}, 'quoted'", ("strict", "off")[number]
        result = vitlab.train(*SMALL_RUN, notes=notes, tags=["a b", "c"], preflight=preflight)
        assert {name: value for name, value in result.metrics.items() if name not in MEASURED} == {
            name: value for name, value in expected.items() if name not in MEASURED
        }
        assert result.run.parent == tmp_path / "outputs" / "demo"
        assert len(result.epochs) == 2
        log = (result.run / "run.log").read_text()
        assert log.count("total time") == 1
        assert "vitlab evaluate run=" in log
    manifest = json.loads((result.run / "manifest.json").read_text())
    assert manifest["command"].startswith("vitlab train experiment=demo")
    assert manifest["tags"] == ["a b", "c"]
    assert OmegaConf.load(result.run / "config.yaml").notes == "number 1, 'quoted'"
    assert {file.name for file in (result.run / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    assert result.model.run == result.run
    assert "test/acc" in repr(result)
    again = vitlab.train(reproduce=result.run)
    assert again.run != result.run
    assert again.metrics["val/loss"] == expected["val/loss"]


def test_figures_of_a_run_are_images(small_run: Path) -> None:
    from vitlab.api import TrainingResult

    figures = TrainingResult(small_run, {}).figures
    assert figures["test/confusion_matrix"].width > 100
    with warnings.catch_warnings(record=True) as caught:  # of a file that is still open
        warnings.simplefilter("always", ResourceWarning)
        del figures
        gc.collect()
    assert not caught


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_resumes(number: int, small_run: Path, unchanged_process: None) -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    stop = [f"+callbacks.stop.number={int(number)}", "+callbacks.stop.hook=on_train_batch_end"]
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else TerminatedError):
        vitlab.train(*SMALL_RUN, *STOP, *stop)
    assert received == [number] * (number == signal.SIGTERM)  # this program's own handler gets it afterwards
    signal.signal(signal.SIGTERM, before)
    result = vitlab.train("resume=latest", trusted_targets=["stoppers."], callbacks={"stop": None})
    assert result.metrics["val/loss"] == json.loads((small_run / "metrics.json").read_text())["val/loss"]


def test_a_failed_training_resumes(unchanged_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("vitlab.callbacks.MetricsCSV.on_test_end", fail, raising=False)
        with pytest.raises(ZeroDivisionError):
            vitlab.train(*SHORT_RUN)
    assert vitlab.train("resume=latest", "trainer.max_epochs=2").metrics["test/acc"] >= 0


def test_training_works_in_a_thread_and_in_an_event_loop(unchanged_process: None) -> None:
    async def train() -> vitlab.api.TrainingResult:
        return vitlab.train(*SHORT_RUN)

    async def both() -> list[Any]:
        return [await train(), await asyncio.to_thread(partial(vitlab.train, *SHORT_RUN))]

    first, second = asyncio.run(both())
    assert first.metrics["val/loss"] == second.metrics["val/loss"]


@pytest.mark.parametrize("arguments", [["-m", "seed=0,1"], ["seed=0,1"], ["sweep=lr_wd"], ["--multirun"]])
def test_a_sweep_is_refused(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(vitlab.UserError, match="vitlab train -m"):
        vitlab.train(*arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "settings", "reason"),
    [
        ([["model=vit_tiny"]], {}, "not a list"),
        ([{"model": "vit_tiny"}], {}, "not a dict"),
        (["experiment=demo"], {"config_dir": "nothing"}, "config_dir=nothing: there is no such folder"),
    ],
)
def test_what_is_no_override_or_folder_is_refused(
    arguments: list[Any], settings: dict[str, Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(vitlab.UserError, match=reason):
        vitlab.train(*arguments, **settings)
    assert not list(tmp_path.iterdir())


def test_choices_of_ones_own_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my conf" / "optimizer").mkdir(parents=True)
    file = tmp_path / "my conf" / "optimizer" / "mine.yaml"
    file.write_text("_target_: torch.optim.SGD\n_partial_: true\nlr: 0.1\nmomentum: 0.75\n")
    result = vitlab.train(*SHORT_RUN, "trainer.limit_train_batches=1", optimizer="mine", config_dir="my conf")
    assert result.model.config.optimizer.momentum == 0.75


@pytest.mark.slow  # two processes import torch
def test_a_module_trains_with_two_processes(tmp_path: Path) -> None:
    program = f"import vitlab\nprint(vitlab.train(*{SMALL_RUN}, trainer='ddp_cpu', **{{'trainer.devices': 2}}).model)\n"
    (tmp_path / "program.py").write_text(program)
    result = run_script("-m", "program", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("VisionTransformer with 10 classes") == 1
    assert "2 x CPU" in result.stdout
