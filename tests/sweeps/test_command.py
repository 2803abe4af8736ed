"""Test `python train.py -m` from end to end, and `sweep=resume:`."""

import json
import os
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SMALL_RUN, Command

from vitlab.errors import UserError
from vitlab.sweeps.search import Search
from vitlab.sweeps.sweep import Sweep, restore_arguments, resume_sweep_command


def write_record(folder: Path, *arguments: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps({"arguments": arguments, "cwd": str(Path.cwd()), "jobs": []}))


def test_resuming_a_sweep_restores_its_arguments(tmp_path: Path) -> None:
    write_record(tmp_path, "model=vit_tiny", "seed=0,1")
    assert restore_arguments(["-m", f"sweep=resume:{tmp_path}", "hydra.launcher.jobs=2"]) == [
        *("-m", "model=vit_tiny", "seed=0,1", "hydra.launcher.jobs=2"),
        f"hydra.sweep.dir='{tmp_path}'",
    ]
    assert restore_arguments(["-m", "seed=0,1"]) == ["-m", "seed=0,1"]


@pytest.mark.parametrize(
    "argument",
    [
        *("model._target_=os.system", "--config-dir=/tmp/evil", "hydra.searchpath=[file:///tmp/evil]"),
        *("hydra.launcher.slurm_setup=[reboot]", "hydra.run.dir=/etc", "data.url=http://evil", "data.cache_dir=/etc"),
        *("logger.save_dir=/etc", "+callbacks.x.dirpath=../..", "hydra/job_logging=mine"),
    ],
)
def test_unsafe_arguments_in_a_sweep_file_are_refused(argument: str, tmp_path: Path) -> None:
    write_record(tmp_path, argument, "seed=0,1")
    with pytest.raises(UserError, match="is only accepted on the command line"):
        restore_arguments(["-m", f"sweep=resume:{tmp_path}"])


def test_a_sweep_resumes_only_in_its_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_record(tmp_path, "data.root=images")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"the sweep was started in .* change to that directory"):
        restore_arguments(["-m", f"sweep=resume:{tmp_path}"])


def test_the_printed_command_resumes_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    assert resume_sweep_command(["seed=0,1"], tmp_path / "a b") == "python train.py -m 'sweep=resume:a b'"
    own = ["model._target_=mine.Net", "seed=0,1"]
    assert resume_sweep_command(own, tmp_path / "a") == f"python train.py -m {own[0]} seed=0,1 hydra.sweep.dir=a"


def test_resuming_a_folder_without_a_sweep_is_an_error(in_process: Command) -> None:
    result = in_process("train.py", "-m", "sweep=resume:nowhere")
    assert result.returncode == 2
    assert result.stderr.startswith("error: nowhere holds no sweep")


SHORT = ["trainer.max_epochs=1", "data.train_images=100", "data.test_images=40", "model.depth=1"]


def test_a_sweep_from_end_to_end(in_process: Command, tmp_path: Path) -> None:
    train = str(ROOT / "train.py")  # which the jobs start as well
    arguments = [*SMALL_RUN, *SHORT, "hydra.sweep.dir=sweep", "hydra.launcher.jobs=2"]
    result = in_process(train, "-m", *arguments, "seed=0,1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    runs = [tmp_path / "sweep" / number for number in "01"]
    assert [json.loads((run / "manifest.json").read_text())["seed"] for run in runs] == [0, 1]
    assert all((run / "metrics.json").exists() for run in runs)
    assert (tmp_path / "sweep" / "leaderboard.html").exists()
    again = in_process(train, "-m", "sweep=resume:sweep")
    assert again.returncode == 0
    assert "2 jobs, 2 of them already finished" in again.stdout


def test_the_jobs_of_a_file_in_conf_sweep_are_runs_not_sweeps(
    in_process: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def note_first(sweep: Sweep, _: object, search: Search, __: str) -> None:
        job = search.next()
        assert job is not None
        commands.append(sweep.command(job))

    monkeypatch.setattr("vitlab.sweeps.search.run_jobs", note_first)
    result = in_process("train.py", "sweep=lr_wd", *SMALL_RUN, *SHORT, "hydra.sweep.dir=sweep")
    assert result.returncode == 0, result.stdout + result.stderr
    (command,) = commands
    result = in_process("train.py", *command[2:])
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "sweep" / "0" / "metrics.json").exists()


def test_a_sweep_may_be_in_a_folder_beside_this_one(
    in_process: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps: list[Sweep] = []
    monkeypatch.setattr("vitlab.sweeps.runner.run_grid", lambda sweep, *_: sweeps.append(sweep))
    result = in_process("train.py", "-m", "data=synthetic", "seed=0,1", f"hydra.sweep.dir=../{tmp_path.name}/sweep")
    assert result.returncode == 0, result.stdout + result.stderr
    (sweep,) = sweeps
    assert sweep.job(0, ["seed=0"]).folder == tmp_path / "sweep" / "0"


def test_keys_with_plus_signs_replace_those_of_a_file_in_conf_sweep(
    in_process: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    grids: list[list[list[str]]] = []
    monkeypatch.setattr("vitlab.sweeps.runner.run_grid", lambda _, __, jobs: grids.append([list(job) for job in jobs]))
    given = ["model._target_=vitlab.models.VisionTransformer", "model.embed_dim=32", "model.num_heads=2"]
    result = in_process("train.py", "sweep=model_size", "data=synthetic", *given, "seed=0", "hydra.sweep.dir=sweep")
    assert result.returncode == 0, result.stdout + result.stderr
    (jobs,) = grids
    assert [next(o for o in job if o.startswith("model.depth=")) for job in jobs] == ["model.depth=6", "model.depth=12"]
    assert all("++model.embed_dim=32" in job for job in jobs)
    assert not any(o.startswith("model.embed_dim=") for job in jobs for o in job)


NETWORKS = """
import sys
import torch

class Net(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = torch.nn.Linear(3, num_classes)

    def forward(self, images):
        self.before()
        return self.head(images.mean((2, 3)))

    def before(self):
        pass

class Raises(Net):
    def before(self):
        raise ZeroDivisionError("by nothing")

class Hungry(Net):
    def before(self):
        torch.ones(10**15)

class Leaves(Net):
    def before(self):
        sys.exit()
"""


@pytest.mark.slow  # five processes that import torch
def test_failing_jobs_do_not_stop_the_others(command: Command, tmp_path: Path) -> None:
    (tmp_path / "networks.py").write_text(NETWORKS)
    names = [f"networks.{name}" for name in ("Net", "Raises", "Hungry", "Leaves")]
    result = command(
        *("train.py", "-m", "data=synthetic", "data.train_images=200", "data.test_images=100", "preflight=off"),
        *("trainer.max_epochs=1", "hydra.sweep.dir=sweep", "seed=0", f"model._target_={','.join(names)}"),
        env={"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        timeout=600,
    )
    assert result.returncode == 1, result.stdout + result.stderr
    jobs = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["jobs"]
    assert [job["status"] for job in jobs] == ["done", "failed", "failed", "failed"]
    assert jobs[1]["reason"] == "ZeroDivisionError: by nothing (status 1)"
    assert "memory" in jobs[2]["reason"]
    assert "status 0" in jobs[3]["reason"]
