"""A run killed at any moment loses nothing that a checkpoint had saved."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL_RUN, run_script
from test_resume import assert_same_run

from vitlab.runs.checkpoint import CONFIG_KEY, WholeCheckpointIO, read_checkpoint

IMAGES = os.environ.get("VITLAB_IMAGES")  # a folder of image files; without one, generated images
DATA = ["data=image_folder", f"data.root={IMAGES}"] if IMAGES else ["data=synthetic"]
RUN = [
    *("model=vit_scratch", "model.embed_dim=48", "model.depth=2", "model.patch_size=8", *DATA),
    *("data.max_train_images=2560", "data.val_size=512", "trainer.limit_test_batches=2", "trainer.max_epochs=12"),
    *("augment=randaugment", "model.drop_path=0.1", "trainer.log_every_n_steps=5", "preflight=off"),
    *("checkpoint.every_minutes=0", "hydra.run.dir=run"),
]
KILLS = 30


def start(arguments: list[str], folder: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, **env}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


@pytest.mark.slow  # 30 starts of a process that imports torch: five minutes or more
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_thirty_kills_at_random_moments(sent: signal.Signals, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    assert run_script("train.py", *RUN, cwd=whole).returncode == 0
    elsewhere = Path("/dev/shm")  # another filesystem, where there is one
    env = {"TMPDIR": str(elsewhere)} if elsewhere.is_dir() else {}
    draw = random.Random(0)
    arguments, kills, seconds = RUN, 0, []
    while kills < KILLS:
        process = start(arguments, tmp_path, env)
        began = time.monotonic()
        last = tmp_path / "run" / "checkpoints" / "last.ckpt"
        before = last.stat().st_mtime_ns if last.exists() else 0
        while process.poll() is None and (not last.exists() or last.stat().st_mtime_ns == before):
            time.sleep(0.005)  # until it trains; most of a process's life is importing
        time.sleep(draw.uniform(0, 0.3))
        process.send_signal(sent)
        _, errors = process.communicate(timeout=120)
        if process.returncode == 0:
            break  # trained to its end before the signal came
        assert process.returncode in (-sent, 143), errors.decode()
        read_checkpoint(last)
        kills += 1
        seconds.append(time.monotonic() - began)
        arguments = ["resume=run"]
    print(f"{kills} kills, {sum(seconds):.0f} s")
    assert kills == KILLS, "the run is too short for so many kills"
    resumed = run_script("train.py", "resume=run", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(tmp_path / "run", whole / "run")


def checkpoint(step: int) -> dict[str, object]:
    return {
        CONFIG_KEY: {"model": {}, "data": {}},
        "global_step": step,
        "state_dict": {"weight": torch.full((300_000,), float(step))},
    }


def write_traced(content: dict[str, object], file: Path, log: Path, *options: str) -> bool:
    """Writes a checkpoint in another process, under strace; returns whether it finished."""
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
        WholeCheckpointIO().save_checkpoint(content, file)
        os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    command = ["strace", "-p", str(child), "-o", str(log), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        assert "attached" in tracer.stderr.readline()
        os.kill(child, signal.SIGCONT)
        status = os.waitpid(child, 0)[1]
    return os.WIFEXITED(status)


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_a_kill_at_any_system_call_of_a_write_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    file, log = tmp_path / "last.ckpt", tmp_path / "log"
    old, new = checkpoint(1), checkpoint(2)  # made here: torch's threads do not survive a fork
    WholeCheckpointIO().save_checkpoint(old, file)
    assert write_traced(new, file, log)
    calls = Counter(re.findall(r"^(\w+)\(", log.read_text(), flags=re.MULTILINE))
    assert {"fsync", "rename", "write", "openat"} <= set(calls)
    found: list[object] = []
    for name, count in calls.items():
        for number in range(1, count + 1):
            WholeCheckpointIO().save_checkpoint(old, file)
            ended = write_traced(new, file, log, "-e", f"inject={name}:signal=KILL:when={number}")
            assert not ended or name == "exit_group", name
            found.append(read_checkpoint(file)["global_step"])
            for stale in tmp_path.glob(".*.tmp"):
                stale.unlink()
    print(f"{len(found)} kills: {found.count(1)} left the old checkpoint, {found.count(2)} the new one")
    assert found.count(1) > 5
    assert found.count(2) > 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("can't mount a filesystem here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_the_run_with_a_sentence_and_keeps_the_last_checkpoint(small_disk: Path) -> None:
    arguments = [*SMALL_RUN, "preflight=off", "trainer.max_epochs=200", f"hydra.run.dir={small_disk}/run"]
    process = start(arguments, small_disk.parent, {})
    last = small_disk / "run" / "checkpoints" / "last.ckpt"
    while not last.exists():
        assert process.poll() is None
        time.sleep(0.01)
    with (small_disk / "fill").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 10_000)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors.decode()
    assert "No space left on device" in errors.decode()
    assert "Traceback" not in errors.decode()
    read_checkpoint(last)
