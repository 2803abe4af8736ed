"""A run that an earlier version wrote (commit 5cc8223) still opens: every verb takes it.

`tests/fixtures/old_run` is a finished run of 2 epochs with `callbacks=ema`, `trainer=ddp_cpu` and `trainer.max_time`,
so its config and checkpoints name targets and callback states that have other names now.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Command

from vitlab.runs.old_config import update_old_config

FIXTURE = Path(__file__).parent / "fixtures" / "old_run"


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE, tmp_path / "outputs" / "old_run" / "2026-11-28_12-00-00"))


def test_the_fixture_names_what_has_other_names_now() -> None:
    config = (FIXTURE / "config.yaml").read_text()
    assert "vitlab.ranks.strategies.DataParallel" in config
    assert "vitlab.callbacks.FiniteLoss" in config


def test_evaluate_gives_the_figures_that_the_run_had(in_process: Command, old_run: Path) -> None:
    result = in_process("evaluate.py", f"run={old_run}", "trainer=cpu")
    assert result.returncode == 0, result.stderr
    then = json.loads((old_run / "metrics.json").read_text())
    now = json.loads((old_run / "evaluation_test.json").read_text())
    assert now["test/acc"] == pytest.approx(then["test/acc"])
    assert now["test/loss"] == pytest.approx(then["test/loss"], abs=1e-5)


def test_predict_and_export_take_it(in_process: Command, old_run: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    result = in_process("predict.py", f"run={old_run}", f"images={tmp_path / 'red.png'}", f"out={tmp_path / 'p.json'}")
    assert result.returncode == 0, result.stderr
    result = in_process("src/vitlab/export.py", f"run={old_run}", f"out={tmp_path / 'export'}")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "export" / "model.safetensors").exists()


@pytest.fixture
def no_process_group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undoes what trainer=ddp_cpu leaves behind in this process."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("no_process_group")
def test_resume_goes_on_with_epochs_clock_and_names_of_today(in_process: Command, old_run: Path) -> None:
    result = in_process("train.py", f"resume={old_run}", "trainer.max_epochs=3")
    assert result.returncode == 0, result.stderr
    assert len((old_run / "metrics.csv").read_text().splitlines()) == 4  # header, two old epochs, a new one
    config = yaml.safe_load((old_run / "config.yaml").read_text())
    assert config["trainer"]["strategy"]["_target_"] == "vitlab.distributed.strategies.DataParallel"
    assert "in_channels" not in config["model"]
    assert "mode" not in config["checkpoint"]
    assert json.loads((old_run / "manifest.json").read_text())["status"] == "finished"


@pytest.mark.usefixtures("no_process_group")
def test_reproduce_trains_it_again(in_process: Command, old_run: Path) -> None:
    result = in_process("train.py", f"reproduce={old_run}")
    assert result.returncode == 0, result.stderr
    runs = sorted(old_run.parent.iterdir())
    assert len(runs) == 2
    then, now = (json.loads((run / "metrics.json").read_text()) for run in (old_run, runs[-1]))
    assert now["val/loss"] == pytest.approx(then["val/loss"], abs=1e-4)


def test_keys_and_values_that_are_gone_are_dropped_or_renamed() -> None:
    config = {
        "model": {"_target_": "vitlab.models.VisionTransformer", "in_channels": 3, "depth": 2},
        "checkpoint": {"monitor": "val/loss", "mode": "min"},
        "trainer": {"precision": 32, "accelerator": "cuda", "profiler": {"warmup_steps": 5}, "max_epochs": 2},
    }
    assert update_old_config(config) == {
        "model": {"_target_": "vitlab.models.VisionTransformer", "depth": 2},
        "checkpoint": {"monitor": "val/loss"},
        "trainer": {"precision": "32-true", "accelerator": "gpu", "profiler": None, "max_epochs": 2},
    }
    own = {
        "model": {"_target_": "mine.Net", "in_channels": 3},
        "checkpoint": {"monitor": "val/f1", "mode": "max"},
        "trainer": {"precision": "bf16-mixed"},
    }
    assert update_old_config(own) == own


@pytest.mark.parametrize("damaged", [None, 3, [], {"model": [1], "checkpoint": "x", "trainer": None}, {"_target_": []}])
def test_a_damaged_config_stays_as_it_is(damaged: object) -> None:
    assert update_old_config(damaged) == damaged
