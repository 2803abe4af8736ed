"""Sweeps of fake_train.py, for tests and the processes that they start, which need not import torch."""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import optuna
from omegaconf import OmegaConf

from vitlab.sweeps.executors import LocalExecutor
from vitlab.sweeps.search import read_space, run_search
from vitlab.sweeps.sweep import Sweep, read_record
from vitlab.system import LINUX

# Modules to preload for a job's process; None: each job imports on its own.
FORKED = ["vitlab.runs.directory"] if LINUX else None
POLL_SECONDS = 0.03  # between two checks of the processes: a tenth of what a fake job takes
FAKE = Path(__file__).parent / "fake_train.py"


def make_sweep(folder: Path) -> Sweep:
    def compose(overrides: Sequence[str]) -> Any:
        typed = dict(o.lstrip("+").split("=", 1) for o in overrides)
        return OmegaConf.create(
            {
                "hydra": {"job": {}, "sweep": {"subdir": "${hydra.job.num}"}},
                "trainer": {
                    "devices": 1,
                    "max_epochs": int(typed.get("trainer.max_epochs", 3)),
                    "max_steps": -1,
                    "limit_val_batches": None,
                },
                "checkpoint": {"monitor": "val/acc", "mode": "max"},
                "data": {"val_size": 0.1},
            }
        )

    hydra = OmegaConf.create(
        {
            "overrides": {"hydra": ["hydra.mode=MULTIRUN", f"hydra.sweep.dir={folder}"], "task": ["seed=0,1"]},
            "runtime": {"config_sources": []},
            "job": {"config_name": "train"},
        }
    )
    return Sweep(folder.absolute(), hydra, compose)


def grid(*more: str, lrs: Sequence[str] = ("0.001", "0.01"), seeds: Sequence[int] = (0, 1)) -> list[list[str]]:
    return [[f"optimizer.lr={lr}", f"seed={seed}", *more] for lr, seed in product(lrs, seeds)]


def results(folder: Path) -> dict[str, float]:
    return {file.parent.name: json.loads(file.read_text())["val/acc"] for file in folder.glob("*/metrics.json")}


def states(folder: Path) -> list[tuple[int, str]]:
    return [(job["number"], job["status"]) for job in read_record(folder)["jobs"]]


LR: Mapping[str, Any] = {"optimizer.lr": "tag(log,interval(1e-5,1e-1))"}


def search(folder: Path, n_trials: int, *fixed: str, pruner: optuna.pruners.BasePruner | None = None) -> optuna.Study:
    """Run trials, two at a time."""
    sys.argv = [str(FAKE), "-m"]
    run_search(
        make_sweep(folder),
        LocalExecutor(2, [], 4, FORKED),
        read_space(LR, ["seed=0", *fixed], {}),
        n_trials,
        optuna.samplers.TPESampler(seed=0, n_startup_trials=4),
        pruner or optuna.pruners.NopPruner(),
    )
    return study_of(folder)


def study_of(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="search", storage=f"sqlite:///{folder / 'study.db'}")


# What a process of its own needs before `run_grid` or `search`.
START = (
    f"import sys; sys.path.insert(0, {str(FAKE.parent.parent)!r}); sys.argv[0] = {str(FAKE)!r}\n"
    "from pathlib import Path; from sweeps.fake_sweep import *; from vitlab.sweeps import runner\n"
    "runner.POLL_SECONDS = POLL_SECONDS\n"
)


def script(folder: Path, jobs: list[list[str]], preload: Sequence[str] | None) -> list[str]:
    code = (
        f"{START}from vitlab.errors import TerminatedError\n"
        "try:\n"
        f"    runner.run_grid(make_sweep(Path({str(folder)!r})), LocalExecutor(2, [], 4, {preload}), {jobs!r})\n"
        "except TerminatedError as error: sys.exit(error.status)\n"
        "except KeyboardInterrupt: sys.exit(130)\n"
    )
    return [sys.executable, "-c", code]


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def fake_processes(folder: Path) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if str(FAKE).encode() in line and str(folder).encode() in line and b"-c" not in line.split(b"\0"):
            found.append(int(process.name))
    return found
