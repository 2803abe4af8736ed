"""Test sweeps with submitit's local executor in place of SLURM, and a fake train.py."""

import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from sweeps.fake_sweep import FAKE, POLL_SECONDS, grid, make_sweep, results, states, wait_for

from vitlab.config.compose import CONF
from vitlab.sweeps.executors import SubmititExecutor, SubmittedJob
from vitlab.sweeps.runner import run_grid


@pytest.fixture(autouse=True)
def _arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(FAKE), "-m"])
    monkeypatch.setattr("vitlab.sweeps.runner.POLL_SECONDS", POLL_SECONDS)


def executor(folder: Path) -> SubmititExecutor:
    return SubmititExecutor(folder / "submitit", "local", 2, 1, {"gpus_per_node": 0, "timeout_min": 5})


def test_jobs_go_through_submitit(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run_grid(
            make_sweep(tmp_path), executor(tmp_path), [*grid(seeds=[0]), ["optimizer.lr=1", "seed=0", "+act=exit"]]
        )
    assert states(tmp_path) == [(0, "done"), (1, "done"), (2, "failed")]
    assert set(results(tmp_path)) == {"0", "1"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_preempted_job_resumes_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted: list[SubmittedJob] = []
    start = SubmititExecutor.start

    def noted(self: SubmititExecutor, *arguments: object) -> SubmittedJob:
        submitted.append(start(self, *arguments))  # type: ignore[arg-type]
        return submitted[-1]

    monkeypatch.setattr(SubmititExecutor, "start", noted)

    def preempt() -> None:
        wait_for(lambda: (tmp_path / "0" / "checkpoints" / "last.ckpt").exists())
        controller = submitted[0].submitted._process.pid
        for task in Path(f"/proc/{controller}/task/{controller}/children").read_text().split():
            os.kill(int(task), signal.SIGUSR2)  # SLURM's warning, as submitit expects it

    thread = threading.Thread(target=preempt)
    thread.start()
    run_grid(make_sweep(tmp_path), executor(tmp_path), grid("+hold=never", lrs=["0.001"], seeds=[0]))
    thread.join()
    assert states(tmp_path) == [(0, "done")]
    assert len(json.loads((tmp_path / "0" / "manifest.json").read_text())["resumed"]) == 1


@pytest.mark.parametrize("launcher", ["submitit_slurm", "submitit_local"])
def test_the_shipped_configs_hold_valid_submitit_parameters(launcher: str, tmp_path: Path) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"hydra/launcher={launcher}", "trainer.num_nodes=2"], return_hydra_config=True)
        node = {key: config.hydra.launcher[key] for key in config.hydra.launcher}
    assert node.pop("_target_") == "hydra_plugins.vitlab.launchers.SubmititLauncher"
    jobs = SubmititExecutor(tmp_path, "debug" if node["cluster"] == "slurm" else "local", *_first_three(node)[1:], node)
    jobs.executor.update_parameters(tasks_per_node=2, **{k: v for k, v in node.items() if v is not None})
    if launcher == "submitit_slurm":
        assert node["nodes"] == 2


def _first_three(node: dict[str, object]) -> list[object]:
    return [node.pop(key) for key in ("cluster", "jobs", "tasks_per_node")]
