"""What a contributor adds works everywhere: a schedule with its YAML file, a metric of a callback."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, SMALL_RUN, Command, run_script
from test_fake_windows import COMMANDS

SCHEDULE = '''

def square_root_decay(optimizer: Optimizer, offset: float) -> LambdaLR:
    """The optimizer's learning rate, divided by the square root of the step."""
    return LambdaLR(optimizer, lambda step: (1 + step / offset) ** -0.5)
'''
CHOICE = """
schedule:
  _target_: vitlab.optim.square_root_decay
  _partial_: true
  offset: 10.0
interval: step
monitor: null
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the project with a schedule of its own."""
    checkout = tmp_path / "checkout"
    for folder in ("src", "conf"):
        shutil.copytree(ROOT / folder, checkout / folder)
    for script in ("train.py", "evaluate.py"):
        shutil.copy(ROOT / script, checkout)
    optim = checkout / "src" / "vitlab" / "optim"
    with (optim / "schedules.py").open("a") as file:
        file.write(SCHEDULE)
    with (optim / "__init__.py").open("a") as file:
        file.write("from vitlab.optim.schedules import square_root_decay\n")
    (checkout / "conf" / "scheduler" / "square_root.yaml").write_text(CHOICE)
    return checkout


def test_a_new_schedule_and_its_yaml_file_are_all_it_takes(
    checkout: Path, tmp_path: Path, in_process: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, evaluate = str(checkout / "train.py"), str(checkout / "evaluate.py")
    small = [*SMALL_RUN, "trainer.max_epochs=1", "logger=none", "hydra.run.dir=run"]
    commands = [
        [train, *small, "scheduler=square_root"],
        [evaluate, "run=run"],
        [train, "resume=run", "trainer.max_epochs=2"],
        [train, "reproduce=run"],
        ["vitlab.export", "run=run"],
    ]
    own = {"PYTHONPATH": str(checkout / "src")}
    result = run_script("-c", COMMANDS, json.dumps(commands), cwd=tmp_path, env=own)
    assert result.stdout.endswith("statuses [0, 0, 0, 0, 0]\n"), result.stderr
    assert "trusted_targets" not in result.stdout
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["scheduler"]["schedule"]["_target_"] == "vitlab.optim.square_root_decay"
    assert (tmp_path / "run" / "export" / "model.safetensors").exists()

    # Where no YAML file names the function, the run comes from somebody else: it must be trusted.
    monkeypatch.setattr("vitlab.optim.square_root_decay", print, raising=False)
    refused = in_process("evaluate.py", "run=run")
    assert refused.returncode == 2
    assert "vitlab.optim.square_root_decay" in refused.stderr
    assert "trusted_targets" in refused.stderr


METRIC = """
import pytorch_lightning as pl

class Mine(pl.Callback):
    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/mine", float(-trainer.current_epoch))
"""


def test_a_metric_of_one_s_own_selects_the_checkpoint(
    in_process: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_metric.py").write_text(METRIC)
    monkeypatch.syspath_prepend(tmp_path)
    own = ["callbacks=early_stopping", "+callbacks.mine._target_=my_metric.Mine", "checkpoint.monitor=val/mine"]
    run = ["logger=none", "hydra.run.dir=run"]
    refused = in_process("train.py", *SMALL_RUN, *own, *run)
    assert refused.returncode == 2
    assert "add +checkpoint.mode=max or min" in refused.stderr
    modes = ["+checkpoint.mode=max", "callbacks.early_stopping.mode=max"]
    result = in_process("train.py", *SMALL_RUN, *own, *modes, *run)
    assert result.returncode == 0, result.stderr
    assert torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 0
