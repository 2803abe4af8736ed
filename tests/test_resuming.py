"""A run that was interrupted becomes what it would have been."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from conftest import ROOT, SMALL_RUN, Command, run_script
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

RUN = [
    *SMALL_RUN,
    *("trainer.max_epochs=4", "trainer.log_every_n_steps=1", "preflight=off", "augment=randaugment"),
    *("model.dropout=0.1", "model.drop_path=0.1", "scheduler=cosine"),
]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
TIMES = {"seconds", "images_per_second", "data_wait", "memory_gib"}


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def same(one: Any, other: Any, path: str = "") -> None:
    """Asserts that two checkpoints' contents are equal to the last bit."""
    assert type(one) is type(other), path
    if isinstance(one, Mapping):
        assert one.keys() == other.keys(), path
        for key in one:
            if key not in TIMES:
                same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            same(a, b, f"{path}[{number}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    else:
        assert one == other, path


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    # TensorBoard reads the files by their names' order, which is that of seconds; here several fall into one.
    files = sorted((run / "tensorboard").glob("events.*"), key=lambda file: file.stat().st_mtime_ns)
    with TemporaryDirectory() as folder:
        for number, file in enumerate(files):
            (Path(folder) / f"events.out.tfevents.{number:04d}").write_bytes(file.read_bytes())
        events = EventAccumulator(folder)
        events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if tag not in TIMES
    }


def assert_same_run(run: Path, whole: Path) -> None:
    for name in ("last", "best"):
        one, other = (
            torch.load(r / "checkpoints" / f"{name}.ckpt", map_location="cpu", weights_only=True) for r in (run, whole)
        )
        for checkpoint in (one, other):
            del checkpoint["vitlab_config"]  # where the run lies, what interrupted it
            for state in checkpoint["callbacks"].values():
                state.pop("current_score", None)  # Lightning does not bring it back; nothing hangs on it
                for key in ("dirpath", "best_model_path", "kth_best_model_path", "best_k_models", "last_model_path"):
                    state.pop(key, None)
        same(one, other, name)
    assert rows(run) == rows(whole)
    ours, theirs = (json.loads((r / "metrics.json").read_text()) for r in (run, whole))
    assert {k: v for k, v in ours.items() if k not in TIMES} == {k: v for k, v in theirs.items() if k not in TIMES}
    assert curves(run) == curves(whole)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    result = run_script("train.py", *RUN, "hydra.run.dir=run", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "run"


def stop(hook: str, epoch: int, batch: int | None = None, number: int = signal.SIGTERM) -> list[str]:
    target = [f"+callbacks.stop._target_=stoppers.SendSignal +callbacks.stop.number={int(number)}"]
    target += [f"+callbacks.stop.hook={hook} +callbacks.stop.epoch={epoch}"]
    target += [f"+callbacks.stop.batch={'null' if batch is None else batch}"]
    return " ".join(target).split()


@pytest.mark.parametrize(
    ("place", "status"),
    [
        (stop("on_train_batch_start", 1, 2), 143),
        (stop("on_train_batch_start", 1, 2, signal.SIGINT), 130),
        (stop("on_train_batch_start", 0, 0, signal.SIGUSR1), 143),
        (stop("on_train_batch_start", 2, 4), 143),  # an epoch's last: validation follows
        (stop("on_validation_start", 1), 143),
        (stop("on_train_epoch_start", 2), 143),
        (stop("on_validation_start", 3), 143),  # of the last epoch
    ],
    ids=lambda value: "-".join(part.split("=")[-1] for part in value[1:]) if isinstance(value, list) else None,
)
def test_a_run_that_was_told_to_stop_goes_on_as_if_nothing_had_happened(
    place: list[str], status: int, whole: Path, in_process: Command, tmp_path: Path
) -> None:
    stopped = in_process("train.py", *RUN, "hydra.run.dir=run", *place)
    assert stopped.returncode == status, stopped.stderr
    assert "python train.py resume=run" in stopped.stdout
    assert "Traceback" not in stopped.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "interrupted"
    resumed = in_process("train.py", "resume=run", "callbacks.stop=null")
    assert resumed.returncode == 0, resumed.stderr
    assert "going on from epoch" in resumed.stdout
    assert_same_run(tmp_path / "run", whole)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert len(manifest["resumed"]) == 1


def test_a_run_that_was_killed_again_and_again_ends_as_if_nothing_had_happened(whole: Path, tmp_path: Path) -> None:
    kills = [("on_validation_end", 1, None), ("on_train_batch_end", 2, 1)]
    arguments = [*RUN, "hydra.run.dir=run", "checkpoint.every_minutes=0"]
    for number, (hook, epoch, batch) in enumerate(kills):
        place = stop(hook, epoch, batch, signal.SIGKILL)
        if number:
            arguments = ["resume=run", "trusted_targets=[stoppers.]"]
            place = [p.replace("+callbacks.stop.", "callbacks.stop.") for p in place]
        command = [sys.executable, str(ROOT / "train.py"), *arguments, *place]
        killed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = run_script("train.py", "resume=latest", "outputs=.", "callbacks.stop=null", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(tmp_path / "run", whole)
