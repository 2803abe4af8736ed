"""Every public callback of Lightning works and is resumed, or is refused in one sentence that says what to use."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from config.test_check import mistakes
from config.test_compose import composed
from conftest import SMALL_RUN, Command
from pytorch_lightning.callbacks import __all__ as PUBLIC
from test_resume import assert_same_run, stop

from vitlab.callbacks import RunProgressBar
from vitlab.components import build_trainer
from vitlab.config.check import REFUSED_CALLBACKS
from vitlab.experiment import resolve
from vitlab.runs.directory import RunDirectory

LIGHTNING = "pytorch_lightning.callbacks"
WORKING: dict[str, list[str]] = {
    "Callback": [],
    "Checkpoint": [],
    "DeviceStatsMonitor": ["cpu_stats=false"],
    "EarlyStopping": ["monitor=val/loss", "mode=min"],
    "LambdaCallback": [],
    "LearningRateMonitor": ["logging_interval=step"],
    "ModelCheckpoint": ["save_last=true", "every_n_train_steps=2", "save_top_k=-1"],
    "ModelSummary": [],
    "RichModelSummary": [],
    "Timer": ["duration=00:01:00:00"],
}
BARS = ["ProgressBar", "RichProgressBar", "TQDMProgressBar"]
QUICK = [
    *SMALL_RUN,
    *("data.train_images=80", "data.test_images=20", "data.batch_size=16", "preflight=off", "callbacks.progress=null"),
    *("callbacks.vit_figures=null", "trainer.log_every_n_steps=1"),
]


def added(name: str, *arguments: str) -> list[str]:
    return [f"+callbacks.{name}._target_={LIGHTNING}.{name}", *(f"+callbacks.{name}.{a}" for a in arguments)]


def test_all_that_do_not_work_are_refused_and_no_others() -> None:
    assert {*WORKING, *BARS} | set(REFUSED_CALLBACKS) == set(PUBLIC), "does it work? else say what to use"
    lines = mistakes(*(argument for name in PUBLIC for argument in added(name, *WORKING.get(name, []))))
    assert lines == [
        f"callbacks.{n}: {n} can't be used: {REFUSED_CALLBACKS[n]}" for n in PUBLIC if n in REFUSED_CALLBACKS
    ]


def test_the_others_work_and_are_resumed(in_process: Command, tmp_path: Path) -> None:
    everything = [*QUICK, *(argument for name, given in WORKING.items() for argument in added(name, *given))]
    whole = in_process("train.py", *everything, "hydra.run.dir=whole")
    assert whole.returncode == 0, whole.stderr
    assert (
        in_process("train.py", *everything, "hydra.run.dir=run", *stop("on_train_batch_start", 1, 1)).returncode == 143
    )
    resumed = in_process("train.py", "resume=run", "callbacks.stop=null")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    for run in ("run", "whole"):
        own = {file.name for file in (tmp_path / run / "checkpoints" / "ModelCheckpoint").iterdir()}
        assert {"last.ckpt", "epoch=0-step=2.ckpt"} <= own  # vitlab's last.ckpt is another file


@pytest.mark.parametrize("name", BARS)
def test_a_progress_bar_replaces_vitlab_s(name: str, tmp_path: Path) -> None:
    def bars(*overrides: str) -> list[Any]:
        config = resolve(composed(tmp_path, "trainer=cpu", *added(name), *overrides))
        trainer = build_trainer(config, RunDirectory(tmp_path), [])
        return [c for c in trainer.callbacks if isinstance(c, pl.callbacks.ProgressBar)]  # type: ignore[attr-defined]

    (bar,) = bars()
    assert type(bar).__name__ == name
    assert not isinstance(bar, RunProgressBar)
    assert bars("trainer.enable_progress_bar=false") == []


@pytest.mark.skipif(find_spec("psutil") is not None, reason="psutil is installed")
def test_a_package_that_a_callback_needs_is_named(in_process: Command) -> None:
    result = in_process("train.py", *QUICK, *added("DeviceStatsMonitor"))
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "pip install -U 'psutil'" in result.stderr


def test_the_same_class_under_lightning_s_other_name_is_told() -> None:
    (line,) = mistakes("+callbacks.x._target_=lightning.pytorch.callbacks.ModelSummary")
    assert "write pytorch_lightning.callbacks.ModelSummary" in line
