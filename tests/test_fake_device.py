"""Whole runs on a fake accelerator: no CPU tensor meets one of the device, and no step makes the host wait."""

from pathlib import Path
from statistics import median

import pytest
from conftest import SMALL_RUN
from fake_device import Record, fake_device

from vitlab.config.compose import compose_training
from vitlab.experiment import train

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


def run_on_fake_device(folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Record:
    fixed = ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.inference_mode=false"]
    short = ["trainer.max_epochs=1", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"]
    always = [*SMALL_RUN, *fixed, *short, "callbacks.progress=null", "name=fake", f"run_dir={folder}"]
    if folder.name != "basic":  # preflight checks the same steps
        always.append("preflight=off")
    with fake_device(monkeypatch) as record:
        train(compose_training([*always, *overrides]), [])
    return record


@pytest.mark.parametrize("name", RUNS)
def test_no_step_waits_or_has_grown(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides, most = RUNS[name]
    record = run_on_fake_device(tmp_path / name, monkeypatch, *overrides)
    assert len(record.operations) >= 2
    assert dict(record.waits) == {}
    assert median(record.operations) <= most


def test_a_wait_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = run_on_fake_device(tmp_path / "run", monkeypatch, "callbacks.nan.action=skip")  # asks in each step
    assert list(record.waits) != []


def test_a_module_that_was_forgotten_on_the_cpu_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitlab.callbacks.EMA.on_fit_start", lambda *_: None)
    with pytest.raises(RuntimeError, match="a CPU tensor meets one on the device"):
        run_on_fake_device(tmp_path / "run", monkeypatch, "callbacks=ema")
