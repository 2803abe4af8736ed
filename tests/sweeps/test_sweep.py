"""Test sweeps with a fake train.py: jobs, failures and interruptions."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from omegaconf import OmegaConf
from sweeps.fake_sweep import (
    FAKE,
    FORKED,
    POLL_SECONDS,
    fake_processes,
    grid,
    make_sweep,
    results,
    script,
    states,
    wait_for,
)

from vitlab.errors import UserError
from vitlab.sweeps.executors import LocalExecutor, visible_gpus
from vitlab.sweeps.runner import run_grid
from vitlab.sweeps.sweep import Job, plan_jobs, read_record, sweep_lock


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the jobs of a sweep in a folder, two at a time; its exit status."""

    def go(folder: Path, jobs: list[list[str]], preload: Sequence[str] | None = FORKED) -> int:
        monkeypatch.setattr(sys, "argv", [str(FAKE), "-m"])
        monkeypatch.setattr("vitlab.sweeps.runner.POLL_SECONDS", POLL_SECONDS)
        try:
            run_grid(make_sweep(folder), LocalExecutor(2, [], 4, preload), jobs)
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return go


@pytest.mark.parametrize("preload", [None, FORKED], ids=["own process", "forked"])
def test_failed_jobs_are_reported_and_the_others_finish(
    preload: Sequence[str] | None, run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [["optimizer.lr=0.001", "seed=0", f"+act={act}"] for act in ("ok", "raise", "exit", "kill", "error")]
    assert run(tmp_path, jobs, preload) == 1
    assert states(tmp_path) == [(0, "done"), (1, "failed"), (2, "failed"), (3, "failed"), (4, "failed")]
    reasons = [job["reason"] for job in read_record(tmp_path)["jobs"]]
    assert reasons == [
        "",
        "ValueError: no such luck (status 1)",
        "exited with status 0 before the run finished",
        "was killed by SIGKILL (out of memory?)",
        "optimizer.lr=-1.0 must be a number above 0",
    ]
    out = capsys.readouterr().out
    assert "job 1 failed: +act=raise: ValueError: no such luck (status 1)" in out
    assert '    raise ValueError("no such luck")' in out  # the last lines
    assert str(tmp_path / "1" / "terminal.log") in out
    assert "4 of 5 jobs failed" in out


def test_repeating_a_sweep_runs_only_unfinished_jobs(run: Callable[..., int], tmp_path: Path) -> None:
    jobs = [*grid(seeds=[0]), ["optimizer.lr=0.1", "seed=0", "+act=raise"]]
    assert run(tmp_path, jobs) == 1
    before = {n: (tmp_path / n / "metrics.json").stat().st_mtime_ns for n in ("0", "1")}
    assert run(tmp_path, jobs) == 1
    assert {n: (tmp_path / n / "metrics.json").stat().st_mtime_ns for n in ("0", "1")} == before
    (kept,) = (tmp_path / "earlier").iterdir()
    assert "no such luck" in (kept / "terminal.log").read_text()  # nothing saved is lost


def test_jobs_that_are_added_later_get_new_numbers(run: Callable[..., int], tmp_path: Path) -> None:
    assert run(tmp_path, grid(seeds=[0])) == 0
    assert run(tmp_path, grid(seeds=[1, 0])) == 0
    overrides = {job["number"]: job["overrides"] for job in read_record(tmp_path)["jobs"]}
    assert overrides[0] == ["optimizer.lr=0.001", "seed=0"]
    assert sorted(overrides) == [0, 1, 2, 3]
    # Fewer are asked for: the record keeps the others.
    assert run(tmp_path, grid(seeds=[1])) == 0
    assert len(read_record(tmp_path)["jobs"]) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("how", "preload"),
    [
        (signal.SIGTERM, FORKED),
        ("all", FORKED),
        *(pytest.param(signal.Signals(number), FORKED, marks=pytest.mark.slow) for number in (1, 2, 9)),  # 5 s each
        *(pytest.param(signal.Signals(number), None, marks=pytest.mark.slow) for number in (9, 15)),
    ],
)
def test_a_stopped_sweep_resumes_to_the_same_results(
    how: Any, preload: Sequence[str] | None, run: Callable[..., int], tmp_path: Path
) -> None:
    jobs = grid("+hold=never", seeds=[0])
    assert run(tmp_path / "whole", grid(seeds=[0])) == 0
    folder = tmp_path / "broken"
    process = subprocess.Popen(script(folder, jobs, preload), stdout=subprocess.PIPE, text=True)
    wait_for(lambda: all((folder / job / "checkpoints" / "last.ckpt").exists() for job in "01"))
    children = fake_processes(folder)
    assert children
    if how == "all":
        for pid in [process.pid, *children]:
            os.kill(pid, signal.SIGKILL)
    else:
        process.send_signal(how)
    out, _ = process.communicate(timeout=60)
    wait_for(lambda: not fake_processes(folder))  # also where the sweep was killed, none goes on alone
    if how == signal.SIGTERM:
        assert process.returncode == 143
        assert f"sweep=resume:{folder}" in out
        assert {status for _, status in states(folder)} == {"interrupted"}
    if how in (signal.SIGINT, signal.SIGHUP):
        assert process.returncode == 128 + how
    assert results(folder) == {}
    assert run(folder, jobs) == 0
    assert results(folder) == results(tmp_path / "whole")
    manifests = [json.loads(file.read_text()) for file in folder.glob("*/manifest.json")]
    assert all("resumed" in manifest for manifest in manifests)  # not from the start
    assert not (folder / "earlier").exists()


def test_jobs_that_share_a_directory_are_refused(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    compose = sweep.compose
    for subdir, message in (
        ("all", "jobs 0 and 1 would share"),
        ("..", "must be inside the sweep"),
        ("/x", "must be inside"),
    ):
        sweep.compose = lambda o, s=subdir: OmegaConf.merge(compose(o), {"hydra": {"sweep": {"subdir": s}}})
        with pytest.raises(UserError, match=message):
            plan_jobs(sweep, grid())


def test_a_sweep_leaves_foreign_files_alone(run: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="1 holds other files"):
        run(tmp_path, grid())
    assert not (tmp_path / "0").exists()
    assert (tmp_path / "1" / "notes.txt").read_text() == "mine"


def test_the_same_job_twice_is_one_job(tmp_path: Path) -> None:
    jobs = plan_jobs(make_sweep(tmp_path), [*grid(seeds=[0]), *grid(seeds=[0])])
    assert [job.number for job in jobs] == [0, 1]


def test_a_run_without_its_last_checkpoint_resumes_from_its_best(tmp_path: Path) -> None:
    job = Job(0, [], tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "manifest.json").write_text('{"status": "running"}')
    (tmp_path / "checkpoints" / "best.ckpt").touch()
    assert job.stage() == "started"
    assert job.resume_command([]) == [f"resume='{tmp_path}'", "checkpoint=best"]


def test_a_job_stopped_from_outside_counts_as_interrupted(run: Callable[..., int], tmp_path: Path) -> None:
    def stop() -> None:
        wait_for(lambda: (tmp_path / "0" / "checkpoints" / "last.ckpt").exists())
        os.kill(fake_processes(tmp_path)[0], signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    assert run(tmp_path, grid("+hold=never", lrs=["0.001"], seeds=[0])) == 1
    thread.join()
    assert states(tmp_path) == [(0, "interrupted")]


def test_invalid_numbers_of_jobs_trials_and_devices_are_errors(in_process: Command) -> None:
    for arguments, key in (
        (["hydra.launcher.jobs=0"], "hydra.launcher.jobs=0"),
        (["hydra/sweeper=optuna", "hydra.sweeper.n_trials=abc", "optimizer.lr=1,2"], "hydra.sweeper.n_trials=abc"),
        (["trainer.devices=[2,3]"], "trainer.devices=[2, 3] names devices"),
    ):
        result = in_process("train.py", "-m", "trainer.accelerator=cpu", "seed=0,1", *arguments)
        assert result.returncode == 2
        assert key in result.stderr


def test_a_second_process_cannot_run_the_same_sweep(run: Callable[..., int], tmp_path: Path) -> None:
    with sweep_lock(tmp_path), pytest.raises(UserError, match="another process is running the sweep"):
        run(tmp_path, grid())


def test_a_job_is_independent_of_the_launcher_around_the_sweep(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("LOCAL_RANK", "1"), ("MASTER_ADDR", "elsewhere"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert run(tmp_path, grid(lrs=["0.1"], seeds=[0])) == 0
    # 4 cores, 2 at a time
    assert (tmp_path / "0" / "terminal.log").read_text() == "OMP 2 RANK None None\n"


class Sleeping:
    """Jobs that run until they are told to end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def job(self, number: int, devices: int) -> Job:
        job = Job(number, [], self.folder / str(number), devices=devices)
        job.folder.mkdir()
        return job


def test_jobs_get_distinct_gpus(tmp_path: Path) -> None:
    executor, jobs = LocalExecutor("auto", ["4", "5", "7"], 8), Sleeping(tmp_path)
    show = ["sh", "-c", "echo $CUDA_VISIBLE_DEVICES; sleep 60"]
    first, second = executor.start(jobs.job(0, 2), show), executor.start(jobs.job(1, 1), show)
    assert not executor.has_room(jobs.job(2, 1))  # no GPU is left
    first.kill()
    wait_for(lambda: first.exit_status() is not None)
    everything = jobs.job(3, 0)
    assert not executor.has_room(everything)  # it waits for the second
    second.kill()
    wait_for(lambda: second.exit_status() is not None)
    assert executor.has_room(everything)
    third = executor.start(everything, show)
    wait_for(lambda: (tmp_path / "3" / "terminal.log").read_text())
    third.kill()
    assert (tmp_path / "3" / "terminal.log").read_text() == "4,5,7\n"
    assert third.process.wait() == -signal.SIGKILL


def test_jobs_share_a_gpu_on_request(tmp_path: Path) -> None:
    executor, jobs = LocalExecutor(4, ["0", "1"], 8), Sleeping(tmp_path)
    processes = [executor.start(job, ["sleep", "60"]) for n in range(4) if executor.has_room(job := jobs.job(n, 1))]
    assert len(processes) == 4
    assert not executor.has_room(jobs.job(4, 1))
    assert sorted(gpu for process in executor.running for gpu in process.gpus) == ["0", "0", "1", "1"]
    for process in processes:
        process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_child_processes_end_with_a_killed_job(tmp_path: Path) -> None:
    executor = LocalExecutor(1, [], 2)
    process = executor.start(Sleeping(tmp_path).job(0, 1), ["sh", "-c", "sleep 6161 & echo $!; wait"])
    log = tmp_path / "0" / "terminal.log"
    wait_for(log.read_text)
    os.kill(process.process.pid, signal.SIGKILL)  # it alone, as where memory runs out
    wait_for(lambda: process.exit_status() is not None)
    left = Path(f"/proc/{log.read_text().strip()}/cmdline")
    wait_for(lambda: not left.exists() or not left.read_bytes())  # gone, or waited for by nobody


def test_hidden_gpus_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert visible_gpus() == ["2", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert visible_gpus() == []


def test_a_damaged_sweep_file_is_an_error(tmp_path: Path) -> None:
    for content, message in (
        ("", "cannot read"),
        ("{}", "cannot read"),
        ('{"arguments": [1], "cwd": "/", "jobs": []}', "wrong type"),
    ):
        (tmp_path / "sweep.json").write_text(content)
        with pytest.raises(UserError, match=message):
            plan_jobs(make_sweep(tmp_path), grid())
