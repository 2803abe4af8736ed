"""Whole runs and commands on a fake GPU of a Mac, which has no float64."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL_RUN
from fake_device import DEVICE, fake_device
from omegaconf import OmegaConf
from PIL import Image
from test_fake_device import small_config
from torch import Tensor

from vitlab.arguments.command import read_command
from vitlab.compat import precise_dtype
from vitlab.components import build_data
from vitlab.config.compose import compose_training
from vitlab.config.resolve import resolve_machine
from vitlab.data import random_augment
from vitlab.data.counter_rng import CounterRNG
from vitlab.embed import embed
from vitlab.errors import UserError
from vitlab.evaluate import evaluate
from vitlab.experiment import train
from vitlab.explain import explain
from vitlab.metrics import CHOICES
from vitlab.predict import predict

AUGMENTS = sorted(file.stem for file in (Path(__file__).parents[1] / "conf" / "augment").glob("*.yaml"))


def augment(choice: str, device: torch.device) -> Tensor:
    """A batch that a choice of augmentations has changed on a device, on the CPU."""
    config = compose_training([*SMALL_RUN, f"augment={choice}", "name=x", "run_dir=x"])
    draw = np.random.default_rng(0)
    images = torch.from_numpy(draw.integers(0, 256, (64, 3, 32, 32), dtype=np.uint8)).to(device)
    rng = CounterRNG(0, 1, torch.arange(64).to(device), torch.zeros(64, dtype=torch.long).to(device))
    for number, transform in enumerate(build_data(config).augmentations):
        images = transform(images, rng, number)
    return images.cpu()


def test_the_fake_gpu_refuses_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_device(monkeypatch, is_apple=True):
        ones = torch.ones(3).to(DEVICE)
        for make in (
            ones.double,
            lambda: torch.zeros(3, dtype=torch.float64).to(DEVICE),
            lambda: torch.tensor(np.float64(0.1), device=DEVICE),
            lambda: torch.zeros(3, dtype=torch.float64, device=DEVICE),
        ):
            with pytest.raises(TypeError, match="float64"):
                make()


def test_float64_in_an_augmentation_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_device(monkeypatch, is_apple=True):
        monkeypatch.setattr(random_augment, "precise_dtype", lambda device: torch.float64)
        with pytest.raises(TypeError, match="float64"):
            augment("randaugment", DEVICE)


@pytest.mark.parametrize("choice", AUGMENTS)
def test_every_augmentation_works_without_float64(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = augment(choice, torch.device("cpu"))
    with fake_device(monkeypatch, is_apple=True):
        found = augment(choice, DEVICE)
    assert (found == expected).float().mean() > 0.98  # a box may be one pixel larger


def test_random_numbers_are_those_of_the_cpu_where_integers_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    indices = torch.arange(1000) * 7
    for options in ({}, {"has_int64": False}):
        with fake_device(monkeypatch, is_apple=True, **options):
            found = CounterRNG(3, 4, indices.to(DEVICE), (indices % 3).to(DEVICE)).uniform(5, 6)
            assert found.device == DEVICE
            found = found.cpu()
        assert torch.equal(found, CounterRNG(3, 4, indices, indices % 3).uniform(5, 6))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all metrics and figures, preflight, EMA and a learning-rate monitor, on the fake GPU."""
    folder = tmp_path_factory.mktemp("apple") / "run"
    metrics = f"metrics=[{','.join(name for name in CHOICES if name not in ('loss', 'acc'))}]"
    monitor = "+callbacks.lr_monitor._target_=pytorch_lightning.callbacks.LearningRateMonitor"
    full = ["callbacks.figures.level=full", "preflight=strict", "data.train_images=164", "data.test_images=20"]
    config = small_config(folder, "callbacks=ema", "augment=strong", metrics, monitor, *full)
    with pytest.MonkeyPatch.context() as monkeypatch, fake_device(monkeypatch, is_apple=True):
        train(config, [])
    return folder


def test_a_run_measures_all_metrics(run: Path) -> None:
    found = json.loads((run / "metrics.json").read_text())
    assert {f"test/{name}{suffix}" for name in CHOICES for suffix in ("", "_ema")} <= set(found)
    checks = json.loads((run / "preflight.json").read_text())
    assert checks["passed"]


@pytest.mark.parametrize("verb", ["evaluate", "predict", "explain", "embed"])
def test_a_command_works(verb: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = {
        "evaluate": (evaluate, ["calibrate=true", "tta=multi", "knn=true"], "run/calibration.json"),
        "predict": (predict, ["images=image.png", "out=out"], "out/predictions.csv"),
        "explain": (explain, ["images=image.png", "out=out"], "out/image.png"),
        "embed": (embed, ["split=test", "out=out.npz"], "out.npz"),
    }
    command, arguments, file = commands[verb]
    shutil.copytree(run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 32), "red").save("image.png")
    with fake_device(monkeypatch, is_apple=True):
        command(*read_command(verb, ["run=run", *arguments]))
    assert (tmp_path / file).exists()


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("accelerator", ["auto", "gpu", "mps"])
def test_a_mac_trains_in_float32(accelerator: str, mac: None, caplog: pytest.LogCaptureFixture) -> None:
    for precision in ("auto", "bf16-mixed", "16-mixed"):
        config = compose_training([f"trainer.accelerator={accelerator}", f"trainer.precision={precision}", "name=x"])
        OmegaConf.set_struct(config, False)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            resolve_machine(config)
        assert config.trainer.precision == "32-true"
        assert (precision in caplog.text) == (precision != "auto")  # Lightning would train in float32 in silence
        assert "fused" not in config.optimizer
        assert config.trainer.sync_batchnorm is False


def test_precision_of_tables_follows_the_device() -> None:
    assert precise_dtype(torch.device("mps")) == torch.float32
    assert precise_dtype(torch.device("cuda")) == precise_dtype(torch.device("cpu")) == torch.float64
    table = random_augment.magnitudes(random_augment.v2.RandAugment, 32, torch.device("cpu"))
    assert table.dtype == torch.float64


def test_a_machine_that_is_no_mac_says_so() -> None:
    config = compose_training(["trainer=mps", "name=x"])
    with pytest.raises(UserError, match=r"trainer\.accelerator=mps.*trainer=cpu"):
        resolve_machine(config)
