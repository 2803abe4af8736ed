"""Several processes run the experiment that one runs, and end together."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL_RUN, Command, run_here
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vitlab.runs.checkpoint import read_checkpoint

RUN = [
    *SMALL_RUN,
    *(
        "callbacks=ema",
        "trainer.precision=32-true",
        "data.batch_size=60",
        "trainer.log_every_n_steps=1",
        "preflight=off",
    ),
    *("augment=randaugment", "augment.mixing.p=0.5", "data.repeated_augmentation=3"),
]
LONG = [*RUN, "trainer.max_epochs=10", "trainer.limit_train_batches=5"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(Path(__file__).parent)])}
DDP = ["trainer=ddp_cpu", "trainer.strategy.timeout_seconds=100"]


def fault(rank: int, batch: int, how: str) -> list[str]:
    node = "callbacks.fault"
    return [f"+{node}._target_=faults.Fault", f"+{node}.rank={rank}", f"+{node}.batch={batch}", f"+{node}.how={how}"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def by_lightning(folder: Path, processes: int, arguments: Sequence[str]) -> tuple[int, str]:
    return _ended([[sys.executable, ROOT / "train.py", *arguments, f"trainer.devices={processes}"]], folder, [{}])


def by_torchrun(folder: Path, processes: int, arguments: Sequence[str], restarts: int = 0) -> tuple[int, str]:
    options = ["--standalone", f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    variables = (
        {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if restarts else {}
    )  # github.com/pytorch/pytorch/issues/135712
    start = [sys.executable, "-m", "torch.distributed.run", *options]
    return _ended([[*start, ROOT / "train.py", *arguments]], folder, [variables])


def by_srun(
    folder: Path, processes: int, arguments: Sequence[str], script: Sequence[str | Path] = (ROOT / "train.py",)
) -> tuple[int, str]:
    tasks = srun_tasks(processes)
    return _ended([[sys.executable, *script, *arguments]] * processes, folder, tasks)


def srun_tasks(processes: int) -> list[dict[str, str]]:
    """What SLURM gives to the tasks of `srun --ntasks-per-node=<processes>` on one machine."""
    job = {
        **{"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "vit", "SLURM_STEP_ID": "0", "SLURM_NNODES": "1"},
        **{"SLURM_NODEID": "0", "SLURM_NODELIST": "localhost", "MASTER_PORT": str(free_port())},
        **{"SLURM_NTASKS": str(processes), "SLURM_NTASKS_PER_NODE": str(processes)},
    }
    return [{**job, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)} for task in range(processes)]


def by_fork(folder: Path, processes: int, arguments: Sequence[str]) -> list[int]:
    """Exit statuses of tasks as of srun, forked from this process, which saves the seconds of importing torch."""
    children = []
    for variables in srun_tasks(processes):
        if not (child := os.fork()):
            try:
                torch.set_num_threads(1)  # a forked process has no other threads of torch's
                os.environ.update(variables)
                result = run_here("train.py", *arguments, cwd=folder)
                os.write(2, result.stderr.encode())
                os._exit(result.returncode)
            finally:
                os._exit(1)
        children.append(child)
    statuses = []
    for child in children:
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        if any(statuses):  # the others would wait for minutes
            for other in children[len(statuses) :]:
                os.kill(other, signal.SIGKILL)
    return statuses


def _ended(commands: Sequence[Sequence[str | Path]], folder: Path, more: Sequence[dict[str, str]]) -> tuple[int, str]:
    """Exit status of the first of some processes, and what they all wrote."""
    output = folder / "output.txt"
    with output.open("w") as file:
        started = [
            subprocess.Popen(command, cwd=folder, env={**ENVIRONMENT, **m}, stdout=file, stderr=subprocess.STDOUT)
            for command, m in zip(commands, more, strict=True)
        ]
        statuses = [process.wait(timeout=400) for process in started]
    return statuses[0], output.read_text()


def only_run(folder: Path) -> Path:
    (run,) = (folder / "outputs" / "demo").iterdir()
    return run


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    result = run_here("train.py", *RUN, "callbacks.figures.level=light", "trainer=cpu", cwd=folder)
    assert result.returncode == 0, result.stderr
    return only_run(folder)


@pytest.fixture(scope="module")
def alone_for_long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process over 50 steps."""
    folder = tmp_path_factory.mktemp("alone_for_long")
    result = run_here("train.py", *LONG, "trainer=cpu", cwd=folder)
    assert result.returncode == 0, result.stderr
    return only_run(folder)


def losses(run: Path) -> dict[int, float]:
    events = EventAccumulator(str(run))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("train/loss_step")}


def assert_same_experiment(run: Path, alone: Path, rel: float = 1e-5) -> None:
    assert losses(run) == pytest.approx(losses(alone), rel=rel)
    tables = [list(csv.DictReader((r / "metrics.csv").open())) for r in (run, alone)]
    for mine, theirs in zip(*tables, strict=True):
        assert (mine["epoch"], mine["step"], mine["val/acc"]) == (theirs["epoch"], theirs["step"], theirs["val/acc"])
        for name in ("train/loss", "train/acc", "val/loss", "lr"):
            assert float(mine[name]) == pytest.approx(float(theirs[name]), rel=rel), name
    mine, theirs = (json.loads((r / "metrics.json").read_text()) for r in (run, alone))
    for name in ("test/acc", "test/acc_ema") if "test/acc_ema" in mine else ("test/acc",):
        assert mine[name] == theirs[name]
    assert mine["test/loss"] == pytest.approx(theirs["test/loss"], rel=rel)
    assert mine["test/knn_acc"] == pytest.approx(theirs["test/knn_acc"], abs=0.011)  # of 103 images, one more or less
    weights, theirs = (read_checkpoint(r / "checkpoints" / "last.ckpt")["state_dict"] for r in (run, alone))
    assert weights.keys() == theirs.keys()
    for name in weights:
        torch.testing.assert_close(weights[name], theirs[name], rtol=1e-3, atol=1e-4)


def assert_one_directory(run: Path, processes: int) -> None:
    assert (run / ".hydra" / "config.yaml").exists()
    assert {file.name for file in (run / "ranks").glob("*.log")} == {f"rank_{r}.log" for r in range(1, processes)}


def test_two_processes_train_as_one_experiment(alone: Path, tmp_path: Path) -> None:
    status, output = by_lightning(tmp_path, 2, [*RUN, *DDP, "callbacks.figures.level=light"])
    assert status == 0, output
    assert "sync_dist" not in output
    run = only_run(tmp_path)
    assert_one_directory(run, 2)
    assert_same_experiment(run, alone)
    details, theirs = (json.loads((r / "test_details.json").read_text()) for r in (run, alone))
    assert details["images"] == 103  # no image is counted twice to fill a batch
    assert details["per_class"] == theirs["per_class"]
    assert {figure.name for figure in (run / "figures").iterdir()} == {f.name for f in (alone / "figures").iterdir()}


@pytest.mark.slow  # three runs
def test_a_rank_that_fails_ends_all_and_one_process_goes_on(alone: Path, tmp_path: Path) -> None:
    arguments = [*RUN, *DDP, "checkpoint.every_minutes=0.00001", *fault(1, 11, "raises")]
    status, output = by_torchrun(tmp_path, 2, arguments)
    assert status == 1
    run = only_run(tmp_path)
    assert_one_directory(run, 2)
    assert "ValueError: the fifth wheel came off" in output
    assert "the fifth wheel came off" in (run / "ranks" / "rank_1.log").read_text()
    assert json.loads((run / "manifest.json").read_text())["status"] in ("failed", "running")  # torchrun kills the rest
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    assert checkpoint["global_step"] == 10  # in the middle of an epoch

    go_on = ["resume=latest", "trainer.devices=1", "trusted_targets=[faults.]", "callbacks.fault=null"]
    status, output = _ended([[sys.executable, ROOT / "train.py", *go_on]], tmp_path, [{}])
    assert status == 0, output
    assert "equal up to rounding" in output
    assert_same_experiment(run, alone)


@pytest.mark.slow  # as above
def test_torchrun_s_second_attempt_goes_on_with_the_run_of_the_first(alone: Path, tmp_path: Path) -> None:
    arguments = [*RUN, *DDP, "checkpoint.every_minutes=0.00001", *fault(1, 11, "raises once")]
    status, output = by_torchrun(tmp_path, 2, arguments, restarts=1)
    assert status == 0, output
    assert "ValueError: the fifth wheel came off" in output
    assert "step 10" in output.split("Resuming")[1]
    run = only_run(tmp_path)
    assert json.loads((run / "manifest.json").read_text())["status"] == "finished"
    assert_same_experiment(run, alone)


@pytest.mark.slow  # each starts several processes, and trains for 50 steps
@pytest.mark.parametrize(("launch", "processes"), [(by_lightning, 3), (by_torchrun, 2), (by_torchrun, 3), (by_srun, 2)])
def test_fifty_steps(launch, processes: int, alone_for_long: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    status, output = launch(tmp_path, processes, [*LONG, *DDP])
    assert status == 0, output
    assert_one_directory(only_run(tmp_path), processes)
    assert len(losses(alone_for_long)) == 50
    assert_same_experiment(only_run(tmp_path), alone_for_long, rel=1e-4)


@pytest.mark.slow  # as above
def test_two_processes_are_gone_on_with_by_three(alone: Path, tmp_path: Path) -> None:
    how = [*RUN, *DDP, "checkpoint.every_minutes=0.00001"]
    status, output = by_lightning(tmp_path, 2, [*how, *fault(0, 11, "raises")])
    assert status == 1
    assert "ValueError: the fifth wheel came off" in output
    status, output = by_torchrun(tmp_path, 3, ["resume=latest", "trusted_targets=[faults.]", "callbacks.fault=null"])
    assert status == 0, output
    assert_same_experiment(only_run(tmp_path), alone)


@pytest.mark.slow  # as above
def test_a_sharded_model_is_gone_on_with_by_other_processes(alone: Path, tmp_path: Path) -> None:
    sharded = ["trainer=fsdp", "trainer.accelerator=cpu", "callbacks=default", "gradient_checkpointing=true"]
    how = [*RUN, *sharded, "trainer.strategy.timeout_seconds=100", "checkpoint.every_minutes=0.00001"]
    status, output = by_lightning(tmp_path, 2, [*how, *fault(1, 11, "raises")])
    assert status == 1
    run = only_run(tmp_path)
    assert (run / "checkpoints" / "last.ckpt" / "__1_0.distcp").exists()
    by_one = tmp_path / "by_one"
    shutil.copytree(run, by_one, symlinks=True)
    go_on = ["trusted_targets=[faults.]", "callbacks.fault=null"]
    status, output = by_torchrun(tmp_path, 3, ["resume=latest", *go_on])
    assert status == 0, output
    assert_same_experiment(run, alone)
    alone_again = [f"resume={by_one}", *go_on, "trainer.devices=1", "trainer.strategy=auto"]
    status, output = _ended([[sys.executable, ROOT / "train.py", *alone_again]], tmp_path, [{}])
    assert status == 0, output
    assert_same_experiment(by_one, alone)
    evaluate = [sys.executable, ROOT / "evaluate.py", f"run={run}", "trusted_targets=[faults.]"]
    status, output = _ended([evaluate], tmp_path, [{}])
    assert status == 0, output
    evaluated = json.loads((run / "evaluation_test.json").read_text())
    assert evaluated["test/acc"] == json.loads((run / "metrics.json").read_text())["test/acc"]


ASKS_TWICE = """
import os, time
from vitlab.distributed.process import broadcast_from_rank0
time.sleep(3 * int(os.environ["SLURM_PROCID"]))
answers = broadcast_from_rank0("begun", lambda: "nothing"), broadcast_from_rank0("folder", lambda: "here")
os.write(1, " ".join((*answers, "")).encode())  # at once: the processes share one pipe
"""


@pytest.mark.slow  # processes that come late
def test_processes_that_come_late_hear_all_answers(tmp_path: Path) -> None:
    status, output = by_srun(tmp_path, 3, ["-c", ASKS_TWICE], script=[])
    assert status == 0, output
    assert output.split() == ["nothing", "here"] * 3


@pytest.mark.slow  # waits for a timeout
@pytest.mark.parametrize(
    ("how", "rank", "sentence"),
    [
        ("raises", 1, "error: process 1 of 3 failed first: ValueError: the fifth wheel came off"),
        ("killed", 2, "error: process 2 of 3 was killed by SIGKILL (out of memory?)"),
        ("stalls", 1, "error: process 1 of 3 was killed or does not answer any more (Timed out"),
        ("stalls", 0, "error: process 0 of 3 does not answer any more (Timed out"),
    ],
)
def test_the_first_cause_is_named(how: str, rank: int, sentence: str, tmp_path: Path) -> None:
    started = [*RUN, *DDP, "trainer.strategy.timeout_seconds=45", *fault(rank, 9, how)]
    status, output = by_lightning(tmp_path, 3, started)
    assert status == 1
    assert sentence in output
    assert json.loads((only_run(tmp_path) / "manifest.json").read_text())["status"] == "failed"
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True)
    assert not left.stdout


@pytest.mark.slow  # as above
def test_ranks_end_with_the_first_process(tmp_path: Path) -> None:
    status, _ = by_lightning(tmp_path, 2, [*RUN, *DDP, "hydra.run.dir=outputs/demo/killed", *fault(0, 9, "killed")])
    assert status == -signal.SIGKILL
    left = subprocess.run(["pgrep", "-f", "outputs/demo/killed"], capture_output=True, text=True)
    assert not left.stdout


def test_what_torchrun_started_must_be_what_the_config_wants(
    in_process: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    result = in_process("train.py", *RUN, "trainer=ddp_cpu", "trainer.devices=3")
    assert result.returncode == 2
    assert result.stderr == (
        "error: trainer.devices: devices=3, but torchrun started 2 processes on each machine: leave it out, or take 2\n"
    )
    assert not (tmp_path / "outputs").exists()
