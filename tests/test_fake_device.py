"""Whole runs and commands on a fake accelerator: no CPU tensor meets one of the device, and no step makes the host
wait."""

import json
import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from conftest import SMALL_RUN
from fake_device import Record, fake_device
from omegaconf import DictConfig
from PIL import Image

from vitlab.arguments.command import read_command
from vitlab.config.compose import compose_training
from vitlab.evaluate import evaluate
from vitlab.experiment import train
from vitlab.explain import explain
from vitlab.export import export
from vitlab.predict import predict
from vitlab.resume import MEASURED, resume

# Overrides, and the most operations of an ordinary step: the network's (depth 2), forward and backward, included.
RUNS = {
    "basic": ([], 560),
    "strong": (["augment=strong", "callbacks=ema", "optimizer=muon"], 1_300),
    "hybrid": (["model=vit_hybrid", "model.patch_size=8", "augment=autoaugment", "optimizer=adam"], 1_000),
    "options": (
        [
            *("model.pool=cls", "model.registers=2", "model.qk_norm=true", "model.locality_attention=true"),
            *("model.stem=shifted", "model.patch_dropout=0.25", "gradient_checkpointing=true", "augment=randaugment"),
        ],
        1_200,
    ),
    "finetuning": (
        [
            *("finetune=freeze_first", "augment=trivialaugment", "data.repeated_augmentation=2", "optimizer=sgd"),
            "trainer.accumulate_grad_batches=2",
        ],
        500,
    ),
    "layer_decay": (["finetune=layer_decay", "data.image_size=64", "model.patch_size=16"], 560),
}


def small_config(folder: Path, *overrides: str) -> DictConfig:
    fixed = ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_epochs=1", "callbacks.progress=null"]
    return compose_training([*SMALL_RUN, *fixed, "name=fake", f"run_dir={folder}", *overrides])


def run_on_fake_device(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str, holds_images: bool = True
) -> Record:
    # Seven steps; how many operations one has does not depend on the size of its batch.
    short = [
        "trainer.limit_val_batches=1",
        "trainer.limit_test_batches=1",
        "data.batch_size=16",
        "data.train_images=140",
    ]
    if folder.name == "basic":  # preflight checks the same steps for the others
        short.append("preflight=strict")
    with fake_device(monkeypatch, holds_images=holds_images) as record:
        train(small_config(folder, *short, *overrides), [])
    return record


@pytest.mark.parametrize("name", RUNS)
def test_no_step_waits_or_has_grown(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides, most = RUNS[name]
    record = run_on_fake_device(tmp_path / name, monkeypatch, *overrides)
    assert len(record.operations) >= 2
    assert dict(record.waits) == {}
    assert median(record.operations) <= most


def test_no_step_waits_for_images_in_host_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = run_on_fake_device(tmp_path / "run", monkeypatch, holds_images=False)
    assert len(record.operations) >= 2
    assert dict(record.waits) == {}


def test_a_wait_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = run_on_fake_device(tmp_path / "run", monkeypatch, "callbacks.nan.action=skip")  # asks in each step
    assert list(record.waits) != []


def test_a_module_that_was_forgotten_on_the_cpu_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitlab.callbacks.EMA.on_fit_start", lambda *_: None)
    with pytest.raises(RuntimeError, match="a CPU tensor meets one on the device"):
        run_on_fake_device(tmp_path / "run", monkeypatch, "callbacks=ema")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same two epochs on the CPU and on the fake device, where the second one is a resumed run's."""
    options = ["callbacks=ema", "scheduler=constant", "data.train_images=164"]
    folders = {name: tmp_path_factory.mktemp(name) / "run" for name in ("cpu", "device")}
    train(small_config(folders["cpu"], *options, "trainer.max_epochs=2"), [])
    with pytest.MonkeyPatch.context() as monkeypatch, fake_device(monkeypatch):
        train(small_config(folders["device"], *options), [])  # figures: test_apple_gpu.py
        resume(*read_command("resume", [f"resume={folders['device']}", "trainer.max_epochs=2"]))
    return folders


def test_a_resumed_run_equals_one_on_the_cpu(runs: dict[str, Path]) -> None:
    cpu, device = (json.loads((folder / "metrics.json").read_text()) for folder in runs.values())
    results = [name for name in cpu if name not in MEASURED]
    assert "test/acc_ema" in results
    assert {name: device[name] for name in results} == {name: pytest.approx(cpu[name]) for name in results}


COMMANDS = {
    "evaluate": (evaluate, ["tta=flip"], "run/predictions_test.csv"),
    "predict": (predict, ["images=image.png", "grid=0", "out=out"], "out/predictions.csv"),
    "explain": (explain, ["images=image.png", "out=out"], "out/image.png"),
}


def split_numbers(table: str) -> tuple[list[str], list[float]]:
    cells = table.replace("\n", ",").split(",")
    return [cell for cell in cells if "." not in cell], [
        float(cell) for cell in cells if re.fullmatch(r"[01]\.\d+", cell)
    ]


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_command_writes_the_same_file_as_on_the_cpu(
    verb: str, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, arguments, file = COMMANDS[verb]
    written = []
    for name, device in (("cpu", nullcontext()), ("device", fake_device(monkeypatch))):
        folder = tmp_path / name
        shutil.copytree(runs["device"], folder / "run")
        monkeypatch.chdir(folder)
        Image.fromarray(np.arange(3072, dtype=np.uint8).reshape(32, 32, 3)).save("image.png")
        with device:
            command(*read_command(verb, ["run=run", *arguments]))
        written.append((folder / file).read_bytes())
    if file.endswith(".png"):
        assert written[0] == written[1]
    else:  # the last digit of a probability may differ: other kernels add in another order
        texts, numbers = zip(*(split_numbers(content.decode()) for content in written), strict=True)
        assert texts[0] == texts[1]
        assert numbers[0] == pytest.approx(numbers[1], abs=2e-6)


def test_a_run_of_the_device_is_exported(runs: dict[str, Path], tmp_path: Path) -> None:
    files = export(*read_command("export", [f"run={runs['device']}", f"out={tmp_path / 'out'}"]))  # always on the CPU
    assert {file.name for file in files} == {"README.md", "config.json", "model.safetensors"}
