"""What a start does before the first step: it imports, composes and draws only what is needed by then."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SMALL_RUN, Command

LOOK = """
import json, os, sys
from pathlib import Path
import pytorch_lightning as pl

class Look(pl.Callback):
    def on_train_batch_start(self, trainer, *_):
        figures = sorted(file.name for file in Path(trainer.default_root_dir, "figures").iterdir())
        Path("seen.json").write_text(json.dumps([sorted(sys.modules), figures]))
        os._exit(7)
"""
LATE = """
import sys
from vitlab.cli import fast_imports
with fast_imports():
    import torchmetrics.audio
assert "scipy.signal._signaltools" not in sys.modules
import scipy.signal
assert scipy.signal.hamming(5).tolist() == scipy.signal.windows.hamming(5).tolist()
from scipy.signal import butter
assert butter(2, 0.3)[0].shape == (3,)
assert type(scipy.signal).__name__ == "module"
assert not hasattr(scipy.signal, "no_such_filter")
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["optimizer.lr=fast"]])
def test_what_needs_no_torch_does_not_import_it(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", str(ROOT / "train.py"), *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == (2 if "=" in arguments[0] else 0)
    modules = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time")}
    assert "hydra" in modules
    assert not modules & {"torch", "numpy", "matplotlib", "rich", "PIL", "optuna", "scipy", "importlib.metadata"}


def test_the_first_step_waits_for_no_figure_and_no_library_that_it_does_not_use(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "look.py").write_text(LOOK)
    overrides = [*SMALL_RUN, "callbacks.figures.level=full", "+callbacks.look._target_=look.Look", "hydra.run.dir=run"]
    result = command("train.py", *overrides, env={"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(tmp_path)])})
    assert result.returncode == 7, result.stderr
    modules, figures = json.loads((tmp_path / "seen.json").read_text())
    assert "torch" in modules
    assert not set(modules) & {"scipy.signal._signaltools", "scipy.stats", "optuna", "gradio", "onnx"}
    assert figures == []


def test_scipy_signal_is_executed_when_it_is_used() -> None:
    subprocess.run([sys.executable, "-c", LATE], check=True)


def test_the_config_of_a_run_is_composed_once(
    in_process: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from hydra.core.config_loader import ConfigLoader

    (loader,) = ConfigLoader.__subclasses__()
    composed = []
    theirs = loader.load_configuration

    def count(self: ConfigLoader, *args: object, **kwargs: object) -> object:
        composed.append(kwargs["overrides"])
        return theirs(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(loader, "load_configuration", count)
    monkeypatch.setattr("vitlab.experiment.train", lambda config: (tmp_path / "name").write_text(config.name))
    assert in_process("train.py", "name=mine", "hydra.run.dir=run").returncode == 0
    assert (tmp_path / "name").read_text() == "mine"
    assert composed == [["name=mine", "hydra.run.dir=run"]]


def test_a_file_may_make_a_run_a_sweep(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    text = "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 0,1\n"
    (folder / "two.yaml").write_text(text)
    chosen = [f"hydra.searchpath=[file://{tmp_path / 'mine'}]", "experiment=two", "data=synthetic"]
    result = command("train.py", *chosen, "preflight=only", "data.train_images=x", "hydra.sweep.dir=sweep")
    assert result.returncode == 2
    assert "data.train_images" in result.stderr
    assert not (tmp_path / "outputs").exists()  # where a single run would be
